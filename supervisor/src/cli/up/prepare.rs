//! Everything that a supervisor needs, made while nothing runs: images, initramfs, disks, plan.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use labyard_rootfs_builder::store::{ImageRecord, KernelRecord, Store};
use labyard_spec::manifest::lab::{Drive, Filesystem, Machine as AskedMachine};
use labyard_spec::manifest::{Manifest, size};
use labyard_spec::source::Source;
use labyard_supervisor::builder::{Builder, BuilderError};
use labyard_supervisor::cgroup::Limits;
use labyard_supervisor::disks::{self, Blanks, DiskError};
use labyard_supervisor::home::{Folder, Home, make_folder, names};
use labyard_supervisor::host::Programs;
use labyard_supervisor::jailed::check_descriptors;
use labyard_supervisor::journal::{Journal, What};
use labyard_supervisor::plan::{self, Found, FoundBase, FoundKernel, Plan};
use labyard_supervisor::record::{self, Condition, ConditionName, Expiry, Machine, State, Who, now_ms};
use labyard_supervisor::tasks::Tasks;
use labyard_supervisor::words::printable;

use super::super::Failure;
use super::{Cancel, Progress, needs};

/// What is prepared, and with what.
pub(super) struct Preparation<'a> {
    pub(super) manifest: &'a Manifest,
    /// The manifest's folder.
    pub(super) base: PathBuf,
    pub(super) home: &'a Home,
    pub(super) folder: Folder,
    pub(super) programs: Programs,
    pub(super) progress: &'a Progress,
    pub(super) cancel: &'a Cancel,
    /// When a lab that is made ends by itself.
    pub(super) expiry: Expiry,
    /// What a lab that is made runs once.
    pub(super) tasks: Tasks,
    /// What the lab may take of the host, where that was said.
    pub(super) limits: Option<Limits>,
    /// No blank disk goes until the plan names it.
    pub(super) blanks: Blanks,
}

/// One file to make.
type Work = Box<dyn FnOnce() -> Result<(), DiskError> + Send>;
/// What tells two images apart: source, size, file system.
type ImageKey = (String, u64, &'static str);
type Images = BTreeMap<ImageKey, (ImageRecord, PathBuf)>;

impl Preparation<'_> {
    /// The kernel of each machine.
    pub(super) fn kernels(&self) -> Result<Vec<KernelRecord>, Failure> {
        kernels(self.home, self.manifest)
    }

    /// Whether the files that drives name are there, and nothing is built that may not be: known before anything is made.
    pub(super) fn check_sources(&self, allow_build: bool) -> Result<(), Failure> {
        for (machine, number, drive) in self.drives() {
            let Some(source) = &drive.source else { continue };
            if matches!(source.value, Source::Dockerfile(_)) && !allow_build {
                let message = format!(
                    "`{}` is built by running its steps on this host, with your rights: --allow-build allows that, where you \
                     trust who wrote them",
                    source.value
                );
                return Err(self.manifest.fault(source.place, source_field(machine, number), message).into());
            }
            let Some(path) = source.value.path().map(|path| self.base.join(path)) else { continue };
            if let Err(error) = std::fs::metadata(&path) {
                let message = format!("{}: {error}; paths are relative to the manifest", path.display());
                return Err(self.manifest.fault(source.place, source_field(machine, number), message).into());
            }
        }
        Ok(())
    }

    /// Every drive with its machine's position and its own.
    fn drives(&self) -> impl Iterator<Item = (usize, usize, &Drive)> {
        self.manifest.lab.machines.iter().enumerate().flat_map(|(machine, asked)| {
            asked.drives.iter().enumerate().map(move |(number, drive)| (machine, number, drive))
        })
    }

    /// The first state, written before anything else is made: from here on `ps` and `down` know the lab.
    pub(super) fn begin(&self, text: &str) -> Result<State, Failure> {
        let lab = &self.manifest.lab;
        let state = State {
            version: record::VERSION,
            name: lab.name.clone(),
            manifest: self.manifest.file.clone(),
            created_ms: now_ms(),
            starter: Some(Who::of(std::process::id())?),
            supervisor: None,
            vmm: None,
            conditions: Vec::new(),
            machines: self.machines(),
            expiry: self.expiry,
            tasks: self.tasks.states(),
            left: None,
            uplinks: Vec::new(),
            end: None,
        };
        state.write(&self.folder)?;
        self.folder.write(names::MANIFEST, text.as_bytes())?;
        self.tasks.write(&self.folder)?;
        Journal::open(&self.folder)?;
        Ok(state)
    }

    /// All machines, which have reached nothing so far.
    pub(super) fn machines(&self) -> Vec<Machine> {
        let machine = |machine: &AskedMachine| Machine {
            name: machine.name.clone(),
            cpu_count: machine.cpu_count,
            memory_mib: machine.memory_mib,
            page_size: 0,
            addresses: machine.interfaces.iter().map(|nic| (nic.network.clone(), nic.address)).collect(),
            addresses6: machine
                .interfaces
                .iter()
                .filter_map(|nic| Some((nic.network.clone(), nic.six?.address)))
                .collect(),
            conditions: Vec::new(),
            paused: false,
            full_drives: Vec::new(),
            ended: None,
        };
        self.manifest.lab.machines.iter().map(machine).collect()
    }

    /// Makes all of it; drives that the plan before has are kept. What is reached is written to the state, where it is this command's.
    pub(super) async fn run(
        &self,
        kernels: &[KernelRecord],
        mut state: Option<&mut State>,
        before: Option<&Plan>,
    ) -> Result<Plan, Failure> {
        let builder = Builder { program: self.programs.find("rootfs-builder")?, home: self.home.path.clone() };
        let images = self.images(&builder).await?;
        self.reached(
            state.as_deref_mut(),
            ConditionName::ImagesReady,
            &format!("images in the store: {}", images.len()),
        )?;

        self.check_needs(kernels, &images)?;
        let kernels = self.boot_files(&builder, kernels).await?;
        let mut bases = self.bases(&images).await?.into_iter();
        let mut found = Vec::new();
        for ((machine, asked), kernel) in self.manifest.lab.machines.iter().enumerate().zip(kernels) {
            let Some((root, _)) = self.root(asked, &images) else {
                return Err(anyhow::anyhow!("machines[{machine}]: the image of its root is missing").into());
            };
            found.push(Found { kernel, root: root.clone(), bases: bases.next().unwrap_or_default() });
        }
        if let Some(before) = before {
            self.keep_bases(before, &mut found);
        }
        let mut plan = plan::plan(&self.manifest.lab, &found, &self.folder);
        if let Some(before) = before {
            plan.keep_sizes(before);
        }
        plan.limits = self.limits.or(before.map(|before| before.limits)).unwrap_or_default();
        check_descriptors(&plan)?;

        let since = Instant::now();
        self.disks(&found).await?;
        let made = self.manifest.lab.machines.iter().map(|machine| machine.drives.len()).sum::<usize>();
        let message = format!("disks made: {made}, in {}", seconds(since.elapsed()));
        self.reached(state, ConditionName::DisksReady, &message)?;
        Ok(plan)
    }

    /// What a drive has written belongs to the file that it was written over, whatever its source has become since.
    fn keep_bases(&self, before: &Plan, found: &mut [Found]) {
        for (machine, found) in self.manifest.lab.machines.iter().zip(found) {
            for (drive, base) in machine.drives.iter().zip(&mut found.bases) {
                if let Some(kept) = before.base(&machine.name, &drive.serial) {
                    *base = kept;
                }
            }
        }
    }

    fn reached(&self, state: Option<&mut State>, name: ConditionName, message: &str) -> Result<(), Failure> {
        self.progress.say(&format!("{name:?}: {message}"));
        let Some(state) = state else { return Ok(()) };
        Journal::open(&self.folder)?.write(None, What::Condition { name, message: message.to_owned() });
        state.conditions.push(Condition { name, at_ms: now_ms(), message: message.to_owned() });
        Ok(state.write(&self.folder)?)
    }

    /// The image of a machine's root.
    fn root<'i>(&self, machine: &AskedMachine, images: &'i Images) -> Option<&'i (ImageRecord, PathBuf)> {
        let drive = machine.drives.iter().find(|drive| drive.mount.as_deref() == Some("/"))?;
        images.get(&self.image_key(drive)?)
    }

    fn check_needs(&self, kernels: &[KernelRecord], images: &Images) -> Result<(), Failure> {
        let store = Store::open(&self.home.path)?;
        for ((position, asked), kernel) in self.manifest.lab.machines.iter().enumerate().zip(kernels) {
            if let Some((image, _)) = self.root(asked, images) {
                needs::check(&store, self.manifest, position, image, kernel)?;
            }
        }
        Ok(())
    }

    /// The image that a drive starts as; `None` for a drive that starts blank.
    fn image_key(&self, drive: &Drive) -> Option<ImageKey> {
        let source = drive.source.as_ref()?.value.below(&self.base);
        let format = drive.filesystem.unwrap_or(Filesystem::Ext4).name();
        Some((source.to_string(), drive.size_bytes.value, format))
    }

    async fn images(&self, builder: &Builder) -> Result<Images, Failure> {
        let store = Store::open(&self.home.path)?;
        let mut images = Images::new();
        for (machine, number, drive) in self.drives() {
            let (Some(key), Some(source)) = (self.image_key(drive), &drive.source) else { continue };
            if images.contains_key(&key) {
                continue;
            }
            let since = Instant::now();
            let told = |line: &str| self.progress.say(&format!("  {}", printable(line)));
            let built = builder.build(&key.0, key.1, key.2, told, self.cancel.wait()).await;
            let built = built.map_err(|error| match error {
                BuilderError::Interrupted => Cancel::failure(),
                BuilderError::Refused { text, input: true } => {
                    self.manifest.fault(source.place, source_field(machine, number), printable(&text)).into()
                }
                other => Failure::from(anyhow::Error::new(other).context(format!("image {}", key.0))),
            })?;
            let record = store.image(&built.key)?;
            let record =
                record.ok_or_else(|| anyhow::anyhow!("image {}: not in the store after it was built", built.key))?;
            let how = if built.cached {
                "from the store".to_owned()
            } else {
                format!("built in {}", seconds(since.elapsed()))
            };
            self.progress.say(&format!("image {} ({}): {how}", source.value, size::show(key.1)));
            images.insert(key, (record, built.path));
        }
        Ok(images)
    }

    async fn boot_files(&self, builder: &Builder, kernels: &[KernelRecord]) -> Result<Vec<FoundKernel>, Failure> {
        let store = Store::open(&self.home.path)?;
        let init = self.programs.find("labyard-init")?;
        let mut made: BTreeMap<String, FoundKernel> = BTreeMap::new();
        let mut found = Vec::new();
        for kernel in kernels {
            if let Some(same) = made.get(&kernel.id) {
                found.push(same.clone());
                continue;
            }
            let told = |line: &str| self.progress.say(&format!("  {}", printable(line)));
            let initramfs = builder.initramfs(&kernel.id, &init, told, self.cancel.wait()).await;
            let initramfs = initramfs.map_err(|error| match error {
                BuilderError::Interrupted => Cancel::failure(),
                other => anyhow::Error::new(other).context(format!("the initramfs of kernel {}", kernel.id)).into(),
            })?;
            let modules = Some(store.modules_disk(kernel)).filter(|path| path.is_file());
            let one = FoundKernel { record: kernel.clone(), vmlinux: store.vmlinux(kernel), initramfs, modules };
            made.insert(kernel.id.clone(), one.clone());
            found.push(one);
        }
        Ok(found)
    }

    /// What every drive of every machine lies on; blank disks are made here where the store lacks them.
    async fn bases(&self, images: &Images) -> Result<Vec<Vec<Option<FoundBase>>>, Failure> {
        let mut all = Vec::new();
        for machine in &self.manifest.lab.machines {
            let mut bases = Vec::new();
            let mut numbers: BTreeMap<_, usize> = BTreeMap::new();
            for drive in &machine.drives {
                if let Some((record, path)) = self.image_key(drive).and_then(|key| images.get(&key)) {
                    bases.push(Some(FoundBase { path: path.clone(), name: record.key.clone() }));
                    continue;
                }
                let (bytes, filesystem) = (drive.size_bytes.value, drive.filesystem);
                if filesystem.is_none() && !drive.read_only {
                    bases.push(None);
                    continue;
                }
                let count = numbers.entry((bytes, filesystem)).or_default();
                let (blanks, number) = (self.blanks.path.clone(), *count);
                *count += 1;
                let made = tokio::task::spawn_blocking(move || disks::blank(&blanks, bytes, filesystem, number));
                bases.push(Some(made.await??));
            }
            all.push(bases);
        }
        Ok(all)
    }

    /// Files for every drive and archive of every machine, on a thread that looks at the flag.
    async fn disks(&self, found: &[Found]) -> Result<(), Failure> {
        let lab = &self.manifest.lab;
        let mut work: Vec<Work> = Vec::new();
        for (machine, found) in lab.machines.iter().zip(found) {
            make_folder(&self.folder.machine(&machine.name))?;
            let archive = self.folder.machine(&machine.name).join(names::MACHINE_ARCHIVE);
            let config = plan::machine_config(lab, machine, found);
            work.push(Box::new(move || disks::machine_archive(&archive, &config)));
            for drive in machine.drives.iter().filter(|drive| !drive.read_only) {
                let paths = plan::layer_paths(&self.folder, &machine.name, &drive.serial);
                work.push(Box::new(move || disks::layer(&paths)));
            }
        }
        let cancel = self.cancel.clone();
        let all = move || {
            for one in work {
                if cancel.flag().load(std::sync::atomic::Ordering::SeqCst) {
                    return Err(DiskError::Interrupted);
                }
                one()?;
            }
            Ok(())
        };
        match tokio::task::spawn_blocking(all).await? {
            Err(DiskError::Interrupted) => Err(Cancel::failure()),
            other => Ok(other?),
        }
    }
}

/// The kernel of each machine.
pub(in crate::cli) fn kernels(home: &Home, manifest: &Manifest) -> Result<Vec<KernelRecord>, Failure> {
    let store = Store::open(&home.path)?;
    let machines = manifest.lab.machines.iter().enumerate();
    let kernels = machines.map(|(position, machine)| {
        let kernel = match &machine.kernel {
            None => store.default_kernel().map_err(|error| Failure::input(error.to_string()))?,
            Some(wanted) => store.kernel(&wanted.value).map_err(|error| {
                manifest.fault(wanted.place, format!("machines[{position}].kernel"), error.to_string())
            })?,
        };
        if machine.memory_mib < kernel.min_memory_mib {
            return Err(Failure::input(format!(
                "machines[{position}].resources.ramSize: {} MiB are too few for kernel {}: give `{}` {} MiB or more",
                machine.memory_mib, kernel.id, machine.name, kernel.min_memory_mib
            )));
        }
        Ok(kernel)
    });
    kernels.collect()
}

fn source_field(machine: usize, drive: usize) -> String {
    format!("machines[{machine}].drives[{drive}].source")
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}
