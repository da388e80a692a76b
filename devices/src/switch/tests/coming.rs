//! Ports that come and go while others send and receive.

use super::*;

const ALL: u64 = !feature::EVENT_IDX;

fn nic(switch: &Arc<Switch>, number: u8) -> Nic {
    let plug = switch.add(PortSpec { mac: mac(number), mtu: 1500 }).expect("a free address");
    let net = Net::new("eth0", plug.clone());
    let mut driver = GuestDriver::power_on_at(Box::new(net), InlineHost::default());
    driver.set_up(ALL);
    Nic { driver, plug, posted: HashMap::new(), next: BUFFERS, offered: 0 }
}

fn payloads(nic: &mut Nic) -> Vec<Vec<u8>> {
    nic.received().into_iter().map(|(_, frame)| frame[14..].to_vec()).collect()
}

#[test]
fn who_comes_later_is_reached_and_who_has_left_is_not() {
    let switch = Switch::new("local");
    assert!(switch.is_empty());
    let (mut a, mut b) = (nic(&switch, 1), nic(&switch, 2));
    b.post(8, 1600);
    a.send(COMPLETE, &frame(mac(3), mac(1), b"early"));
    assert_eq!(a.count(Count::SentToNobody), 1);

    let mut c = nic(&switch, 3);
    c.post(8, 1600);
    a.send(COMPLETE, &frame(mac(3), mac(1), b"to the third"));
    a.send(COMPLETE, &frame(BROADCAST, mac(1), b"to all"));
    c.send(COMPLETE, &frame(mac(2), mac(3), b"from the third"));
    assert_eq!(payloads(&mut c), [b"to the third".to_vec(), b"to all".to_vec()]);
    assert_eq!(payloads(&mut b), [b"to all".to_vec(), b"from the third".to_vec()]);
    assert!(switch.add(PortSpec { mac: mac(2), mtu: 1500 }).is_none(), "the address is taken");

    b.plug.leave();
    b.plug.leave();
    a.send(COMPLETE, &frame(mac(2), mac(1), b"too late"));
    a.send(COMPLETE, &frame(BROADCAST, mac(1), b"to the rest"));
    assert_eq!(a.count(Count::SentToNobody), 2);
    assert_eq!((payloads(&mut b).len(), payloads(&mut c)), (0, vec![b"to the rest".to_vec()]));

    // The place of the second is free, and so is its address.
    let mut again = nic(&switch, 2);
    again.post(8, 1600);
    c.send(COMPLETE, &frame(mac(2), mac(3), b"welcome"));
    assert_eq!(payloads(&mut again), [b"welcome".to_vec()]);
}

#[test]
fn who_listens_hears_those_who_come_and_nobody_in_the_place_of_one_who_left() {
    let switch = Switch::new("local");
    let (a, b) = (nic(&switch, 1), nic(&switch, 2));
    let (all, own) = (a.plug.capture(true).expect("one"), b.plug.capture(false).expect("another"));
    b.plug.leave();
    assert!(own.is_over() && !all.is_over());
    let mut c = nic(&switch, 3);
    c.send(COMPLETE, &frame(mac(1), mac(3), b"hello"));
    assert_eq!(all.take(std::time::Duration::ZERO).len(), 1);
    assert_eq!(own.take(std::time::Duration::ZERO).len(), 0);
}
