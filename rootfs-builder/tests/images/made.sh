#!/bin/sh
# Images that others make, in an empty folder, as root:
#   made.sh FOLDER
# buildah/ is a layout by buildah, tag `it`, of several layers; saved.tar and zstd/ are what skopeo makes of it; bundle/rootfs is what
# umoci unpacks of it.
set -eu
cd "$1"
for folder in "${XDG_CACHE_HOME:-$HOME/.cache}/labyard/buildah/usr/bin" /usr/sbin /sbin; do PATH=$PATH:$folder; done

mkdir tree context
cp /bin/busybox context/busybox
(
    cd tree
    mkdir -p bin etc dev lower/deep replaced lib
    echo one > etc/one
    ln etc/one etc/second
    ln -s ../etc/one lib/link
    ln -s etc/one absolute
    printf 'not UTF-8' > "$(printf 'etc/\377name')"
    printf 'long' > "etc/$(printf 'n%.0s' $(seq 1 250))"
    mknod dev/null c 1 3
    mknod dev/block b 259 70000
    mkfifo dev/pipe
    cp /bin/busybox bin/privileged
    chmod 6755 bin/privileged
    cp /bin/busybox bin/capable
    setcap cap_net_raw+ep bin/capable
    setfattr -n user.note -v 'a note' etc/one
    truncate -s 3M etc/holes
    printf 'end' >> etc/holes
    echo old > replaced/old
    echo deep > lower/deep/file
    mkdir -m 1777 tmp
    chown 123456:2000000 etc/one
    chown -h 77:88 lib/link
    touch -h -d '1969-12-31 12:00:00.25 UTC' absolute
    touch -d '2009-02-13 23:31:30.987654321 UTC' etc/holes lower/deep
)
tar -C tree --format=pax --xattrs --xattrs-include='*' --numeric-owner -cf context/tree.tar .
cat > context/Containerfile <<'EOF'
FROM scratch
ADD tree.tar /
COPY busybox /bin/busybox
RUN ["/bin/busybox", "sh", "-c", "rm -r /replaced && echo file > /replaced && rm /lower/deep/file && echo more >> /etc/one"]
RUN ["/bin/busybox", "sh", "-c", "rm /replaced && mkdir /replaced && echo new > /replaced/new && ln /bin/busybox /bin/sh && rm -r /lower && mkdir -p /lower/deep && chmod 700 /etc"]
RUN ["/bin/busybox", "sh", "-c", "rm /etc/second && ln -s one /etc/second && mkfifo /lower/deep/pipe"]
EOF
own() { buildah --root "$PWD/root" --runroot "$PWD/run" --storage-driver vfs "$@"; }
own build --isolation chroot --layers --format oci --tag it context >&2
own push it "oci:$PWD/buildah:it"
skopeo --insecure-policy copy --quiet oci:buildah:it docker-archive:saved.tar:it:1
skopeo --insecure-policy copy --quiet --dest-compress-format zstd oci:buildah:it oci:zstd:it
umoci unpack --image buildah:it bundle
rm -rf root run tree context
