//! A timer that is waited on like any descriptor (timerfd_create(2)), alone or beside another one, and that any thread may set.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::event::epoll;
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

/// Readable when its timer has expired, or when a descriptor that it also watches can be read (epoll(7)).
#[derive(Debug)]
pub struct Alarm {
    timer: Timer,
    /// Of the timer and the other descriptor, where there is one.
    both: Option<OwnedFd>,
}

impl Alarm {
    /// One that is not set, over `other` where there is one.
    ///
    /// # Errors
    /// What the kernel says; descriptors may be used up.
    pub fn new(other: Option<RawFd>) -> io::Result<Self> {
        let timer = Timer::new()?;
        let Some(other) = other else { return Ok(Self { timer, both: None }) };
        let both = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        // SAFETY: the number is only handed to epoll_ctl(2) within this function, which refuses one that is not open.
        let other = unsafe { BorrowedFd::borrow_raw(other) };
        for fd in [timer.0.as_fd(), other] {
            epoll::add(&both, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        }
        Ok(Self { timer, both: Some(both) })
    }

    /// Rings once, after `time`.
    ///
    /// # Errors
    /// What timerfd_settime(2) says.
    pub fn set(&self, time: Duration) -> io::Result<()> {
        self.timer.set(time)
    }

    /// Whether the timer has rung since it was set; it is silent from now on.
    pub fn has_rung(&self) -> bool {
        self.timer.take()
    }

    /// What to wait on.
    pub fn source(&self) -> RawFd {
        self.both.as_ref().unwrap_or(&self.timer.0).as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn waits(alarm: &Alarm, limit: Duration) -> bool {
        let source = alarm.both.as_ref().unwrap_or(&alarm.timer.0);
        !crate::wait::readable(source.as_fd(), Some(limit)).expect("poll")
    }

    #[test]
    fn it_rings_once_and_tells_of_the_other_descriptor() {
        let (reader, mut writer) = io::pipe().expect("a pipe");
        let alarm = Alarm::new(Some(reader.as_raw_fd())).expect("an alarm");
        assert!(waits(&alarm, Duration::ZERO) && !alarm.has_rung());
        alarm.set(Duration::ZERO).expect("set");
        assert!(!waits(&alarm, Duration::from_secs(60)));
        assert!(alarm.has_rung() && !alarm.has_rung());
        assert!(waits(&alarm, Duration::ZERO));
        writer.write_all(b"x").expect("writing");
        assert!(!waits(&alarm, Duration::ZERO) && !alarm.has_rung());
        let alone = Alarm::new(None).expect("an alarm");
        assert!(waits(&alone, Duration::ZERO));
        alone.set(Duration::from_millis(1)).expect("set");
        assert!(!waits(&alone, Duration::from_secs(60)) && alone.has_rung());
    }

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
