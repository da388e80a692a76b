//! A timer that can be waited for beside a descriptor, through one descriptor (timerfd_create(2), epoll(7)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::event::epoll;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// Readable when its timer has expired, or when a descriptor that it also watches can be read.
#[derive(Debug)]
pub struct Alarm {
    timer: OwnedFd,
    /// Of the timer and the other descriptor, where there is one.
    both: Option<OwnedFd>,
}

impl Alarm {
    /// One that is not set, over `other` where there is one.
    ///
    /// # Errors
    /// What the kernel says; descriptors may be used up.
    pub fn new(other: Option<RawFd>) -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        let Some(other) = other else { return Ok(Self { timer, both: None }) };
        let both = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        // SAFETY: the number is only handed to epoll_ctl(2) within this function, which refuses one that is not open.
        let other = unsafe { BorrowedFd::borrow_raw(other) };
        for fd in [timer.as_fd(), other] {
            epoll::add(&both, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        }
        Ok(Self { timer, both: Some(both) })
    }

    /// Rings once, after `time`.
    ///
    /// # Errors
    /// What timerfd_settime(2) says.
    pub fn set(&self, time: Duration) -> io::Result<()> {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            // A timer of no time at all would be one that is not set.
            tv_nsec: i64::from(time.subsec_nanos()).max(1),
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &Itimerspec { it_interval: zero, it_value: value })?;
        Ok(())
    }

    /// Whether the timer has rung since it was set; it is silent from now on.
    pub fn has_rung(&self) -> bool {
        let mut count = [0; 8];
        matches!(rustix::io::read(&self.timer, &mut count), Ok(8))
    }

    /// What to wait on.
    pub fn source(&self) -> RawFd {
        self.both.as_ref().unwrap_or(&self.timer).as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn waits(alarm: &Alarm, limit: Duration) -> bool {
        let source = alarm.both.as_ref().unwrap_or(&alarm.timer);
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
}
