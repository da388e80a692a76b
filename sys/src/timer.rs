//! A timer that is waited on like any descriptor (timerfd_create(2)), and that any thread may set.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// The timer; it can be read once its time has come.
#[derive(Debug)]
pub struct Timer(OwnedFd);

impl Timer {
    /// A timer that is not set.
    ///
    /// # Errors
    /// What timerfd_create(2) says.
    pub fn new() -> io::Result<Self> {
        Ok(Self(timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?))
    }

    /// Sets it to fire once, `after` from now; whatever it was set to before is forgotten.
    ///
    /// # Errors
    /// What timerfd_settime(2) says.
    pub fn set(&self, after: Duration) -> io::Result<()> {
        // A time of zero would switch it off.
        let after = after.max(Duration::from_nanos(1));
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Timespec {
            tv_sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: after.subsec_nanos().into(),
        };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &Itimerspec { it_interval: zero, it_value: value })?;
        Ok(())
    }

    /// Takes its firing back, so that a level-triggered wait sleeps again; `false` where it has not fired.
    pub fn take(&self) -> bool {
        rustix::io::read(&self.0, &mut [0; 8]).is_ok()
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_timer_fires_once_and_can_be_set_to_now() {
        let timer = Timer::new().expect("a timer");
        assert!(!timer.take());
        timer.set(Duration::from_secs(3600)).expect("set");
        timer.set(Duration::ZERO).expect("set");
        crate::wait::readable(timer.0.as_fd(), None).expect("waiting");
        assert!(timer.take());
        assert!(!timer.take());
    }
}
