//! Each receiver gets what its own driver negotiated, and the same bytes.

use proptest::prelude::*;

use super::packets::{FORMS, Form, Packet, noise, packet};
use super::*;
use crate::switch::claim::{F_CSUM, F_HOST_TSO4, F_HOST_TSO6, F_HOST_USO};
use crate::switch::offload::{F_GUEST_CSUM, GUEST_OFFLOADS};
use crate::virtio::net::{F_CTRL_GUEST_OFFLOADS, F_MRG_RXBUF};

/// Takes and leaves everything.
pub(super) const ALL: u64 = !feature::EVENT_IDX;
/// Everything, in large buffers.
const LARGE_BUFFERS: u64 = ALL & !F_MRG_RXBUF;
/// Finishes checksums, takes no large segments.
const CHECKSUMS: u64 = ALL & !(GUEST_OFFLOADS & !F_GUEST_CSUM);
/// Takes complete frames only.
const NOTHING: u64 = ALL & !GUEST_OFFLOADS & !F_CTRL_GUEST_OFFLOADS & !F_MRG_RXBUF;

/// Whole, as the sender left it.
fn check_whole(sent: &Packet, header: &[u8], got: &[u8], size: u16) {
    let mut expected = sent.claim(size);
    expected[10..].copy_from_slice(&header[10..]);
    if size == 0 {
        expected[2..4].copy_from_slice(&[0, 0]);
    }
    assert_eq!((header, got), (&expected[..], &sent.bytes[..]));
    sent.same_form(got).check_undone();
}

/// Cut into segments of `size`, of which the payload is put together again.
pub(super) fn check_segments(sent: &Packet, got: &[Received], size: u16, finished: bool) {
    let mut payload = Vec::new();
    for (number, (header, bytes)) in got.iter().enumerate() {
        let segment = sent.same_form(bytes);
        segment.check_lengths();
        match finished {
            true => segment.check_finished(),
            false => segment.check_undone(),
        }
        assert_eq!(header[0], u8::from(!finished), "flags");
        assert_eq!(header[1..6], [0; 5], "not a large segment");
        if !sent.form.udp {
            assert_eq!(segment.sequence(), sent.sequence().wrapping_add(payload.len() as u32));
            let (first, last) = (number == 0, number + 1 == got.len());
            let expected = 0x10 | if first { 0x80 } else { 0 } | if last { 0x09 } else { 0 };
            assert_eq!(segment.flags(), expected, "flags of segment {number}");
        }
        if !sent.form.ipv6 {
            let id = u16::from_be_bytes([bytes[sent.network + 4], bytes[sent.network + 5]]);
            assert_eq!(id, 0xfffe_u16.wrapping_add(number as u16));
        }
        assert!(segment.payload().len() <= size.into());
        payload.extend_from_slice(segment.payload());
    }
    assert!(payload == sent.payload(), "the payload is another");
}

#[test]
fn a_large_segment_that_waited_through_a_save_is_as_it_would_have_been() {
    for form in FORMS {
        let mut nics = network(&[ALL, ALL, NOTHING]);
        let sent = packet(form, BROADCAST, &noise(60_000));
        nics[1..].iter_mut().for_each(|nic| nic.driver.transport().hold());
        nics[0].send(sent.claim(1400), &sent.bytes);
        for nic in &mut nics[1..] {
            let port = nic.plug.port().expect("a port");
            let waiting = port.save().expect("its driver goes on");
            assert_eq!(waiting.len(), 1);
            port.forget();
            assert!(port.save().is_none());
            port.restore(&waiting).expect("its own state");
            assert_eq!(port.save().as_ref(), Some(&waiting));
            nic.driver.transport().release();
        }
        nics[1].post(60, 1526);
        nics[2].post(60, 1600);
        let got = nics[1].received();
        assert_eq!(got.len(), 1, "{form:?}");
        check_whole(&sent, &got[0].0, &got[0].1, 1400);
        check_segments(&sent, &nics[2].received(), 1400, true);
    }
}

#[test]
fn a_large_segment_reaches_each_receiver_in_its_own_form() {
    for form in FORMS {
        let mut nics = network(&[ALL, ALL, LARGE_BUFFERS, CHECKSUMS, NOTHING]);
        nics[1].post(60, 1526);
        nics[2].post(2, 66_000);
        nics[3].post(60, 1600);
        nics[4].post(60, 1600);
        let sent = packet(form, BROADCAST, &noise(60_000));
        nics[0].send(sent.claim(1400), &sent.bytes);
        for whole in [1, 2] {
            let got = nics[whole].received();
            assert_eq!(got.len(), 1, "{form:?} to {whole}");
            check_whole(&sent, &got[0].0, &got[0].1, 1400);
        }
        for (cut, finished) in [(3, false), (4, true)] {
            let got = nics[cut].received();
            assert_eq!(got.len(), 43, "{form:?} to {cut}");
            check_segments(&sent, &got, 1400, finished);
        }
        assert_eq!(nics[0].count(Count::SentFrames), 43);
        for nic in &nics[1..] {
            assert_eq!((nic.count(Count::ReceivedFrames), nic.driver.faults()), (43, 0));
            assert_eq!(nic.count(Count::ReceivedBytes), nics[0].count(Count::SentBytes));
        }
    }
}

#[test]
fn a_checksum_is_left_to_whoever_takes_that_and_finished_for_others() {
    for form in FORMS {
        for len in [0, 1, 2, 3, 777, 1300] {
            let mut nics = network(&[ALL, CHECKSUMS, NOTHING]);
            nics[1].post(1, 1600);
            nics[2].post(1, 1600);
            let sent = packet(form, BROADCAST, &noise(len));
            nics[0].send(sent.claim(0), &sent.bytes);
            let (left, finished) = (nics[1].received(), nics[2].received());
            check_whole(&sent, &left[0].0, &left[0].1, 0);
            assert_eq!(finished[0].0[..10], [0; 10]);
            let finished = sent.same_form(&finished[0].1);
            finished.check_lengths();
            finished.check_finished();
            assert_eq!(finished.payload(), sent.payload());
        }
    }
}

#[test]
fn segments_wait_for_buffers_and_go_on_where_they_stopped() {
    for form in FORMS {
        let mut nics = network(&[ALL, NOTHING]);
        nics[1].post(3, 1600);
        let sent = packet(form, mac(2), &noise(20_000));
        let then = packet(form, mac(2), b"behind it");
        nics[0].send(sent.claim(1000), &sent.bytes);
        nics[0].send(then.claim(0), &then.bytes);
        let snapshot = nics[1].plug.port().expect("a port").snapshot();
        assert_eq!((snapshot.get(Count::ReceivedFrames), snapshot.waiting_frames), (3, 18));
        let mut got = nics[1].received();
        for _ in 0..6 {
            nics[1].post(3, 1600);
            got.extend(nics[1].received());
        }
        let last = sent.same_form(&got.pop().expect("the last").1);
        assert_eq!(last.payload(), b"behind it");
        check_segments(&sent, &got, 1000, true);
    }
}

#[test]
fn buffers_are_taken_for_a_large_frame_all_or_none() {
    let mut nics = network(&[ALL, ALL]);
    let sent = packet(FORMS[0], mac(2), &noise(10_000));
    nics[1].post(4, 2000);
    nics[0].send(sent.claim(1400), &sent.bytes);
    assert_eq!(nics[1].received().len(), 0, "8,000 bytes are not enough");
    nics[1].post(1, 2000);
    assert_eq!(nics[1].received().len(), 0, "nor 10,000");
    nics[1].post(1, 2000);
    let got = nics[1].received();
    assert_eq!((got.len(), got[0].0[10]), (1, 6));
    check_whole(&sent, &got[0].0, &got[0].1, 1400);
}

#[test]
fn waiting_for_more_buffers_works_with_event_indices() {
    let mut nics = network(&[!0, !0]);
    let sent = packet(FORMS[0], mac(2), &noise(10_000));
    nics[1].post(3, 2000);
    nics[0].send(sent.claim(1400), &sent.bytes);
    for _ in 0..3 {
        assert_eq!(nics[1].received().len(), 0);
        let event = nics[1].driver.avail_event(RX);
        assert_eq!(event, nics[1].driver.avail_index(RX), "the driver is asked for a kick with the next buffer");
        nics[1].post(1, 2000);
    }
    assert_eq!(nics[1].received().len(), 1);
    assert!(nics[1].driver.interrupts() > 0);
}

#[test]
fn a_datagram_whose_checksum_comes_out_as_zero_says_so_with_ones() {
    let mut nics = network(&[ALL, NOTHING]);
    // The payload is the checksum that the rest would have: with it the sum is all ones.
    let form = Form { ipv6: false, udp: true, tagged: false, extras: 0 };
    let plain = packet(form, mac(2), &[0, 0]);
    nics[1].post(2, 1600);
    nics[0].send(plain.claim(0), &plain.bytes);
    let got = nics[1].received();
    let at = plain.checksum_at();
    let rest = [got[0].1[at], got[0].1[at + 1]];
    let sent = packet(form, mac(2), &rest);
    nics[0].send(sent.claim(0), &sent.bytes);
    let got = nics[1].received();
    assert_eq!(got[0].1[at..at + 2], [0xff, 0xff]);
    sent.same_form(&got[0].1).check_finished();
}

#[test]
fn work_that_the_sender_did_not_agree_to_leave_is_refused() {
    let features = [F_CSUM | F_HOST_TSO4 | F_HOST_TSO6 | F_HOST_USO, F_HOST_TSO4, F_HOST_TSO6, F_HOST_USO];
    for (missing, refused) in
        features.into_iter().zip([[true; 3], [true, false, false], [false, true, false], [false, false, true]])
    {
        let mut nics = network(&[ALL & !missing, ALL]);
        nics[1].post(40, 1600);
        for (form, refused) in [FORMS[0], FORMS[1], FORMS[2]].into_iter().zip(refused) {
            let sent = packet(form, mac(2), &noise(2000));
            nics[0].send(sent.claim(1000), &sent.bytes);
            assert_eq!(nics[1].received().len(), usize::from(!refused), "{form:?} without {missing:#x}");
        }
        assert_eq!(nics[0].count(Count::RefusedHeaders), refused.iter().filter(|refused| **refused).count() as u64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_cut_of_any_payload_comes_together_again(
        form in 0..FORMS.len(), len in 1usize..20_000, size in 300u16..1420, piece in proptest::collection::vec(1u32..300, 0..5),
    ) {
        let mut nics = network(&[ALL, ALL, NOTHING]);
        let sent = packet(FORMS[form], BROADCAST, &noise(len));
        nics[1].post(20, 1526);
        nics[2].post(80, 1600);
        nics[0].send_pieces(sent.claim(size), &sent.bytes, &piece);
        let whole = nics[1].received();
        check_whole(&sent, &whole[0].0, &whole[0].1, size);
        let cut = nics[2].received();
        prop_assert_eq!(cut.len(), len.div_ceil(size.into()));
        check_segments(&sent, &cut, size, true);
    }
}
