//! What a shard remembers of requests, term by term.

use super::*;
use futures::executor::block_on;
use futures::poll;
use kiseki_types::LocalBoxFuture;
use kiseki_types::table::{Row, TableError, TableId};
use std::pin::pin;
use std::task::Poll;

/// The rows that are committed.
#[derive(Default)]
struct Rows(RefCell<BTreeMap<Vec<u8>, Vec<u8>>>);

impl Rows {
    fn commit(&self, row: RowChange) {
        assert_eq!(row.table, REQUESTS);
        self.0.borrow_mut().insert(row.key, row.value.expect("rows are put over each other"));
    }
}

impl TableReader for Rows {
    fn get(&self, _: u8, _: TableId, key: &[u8]) -> LocalBoxFuture<'static, Result<Option<Vec<u8>>, TableError>> {
        let value = self.0.borrow().get(key).cloned();
        Box::pin(async move { Ok(value) })
    }
    fn scan(&self, scan: Scan) -> LocalBoxFuture<'static, Result<Vec<Row>, TableError>> {
        let rows = self.0.borrow();
        let rows = rows.iter().take(scan.limit).map(|(key, value)| (key.clone(), value.clone())).collect();
        Box::pin(async move { Ok(rows) })
    }
}

/// The log of a leader whose term begins now.
fn next_term(rows: &Rows) -> RequestLog {
    let log = RequestLog::default();
    block_on(log.load(rows)).expect("the rows are sound");
    log
}

fn id(number: u64) -> RequestId {
    RequestId((u128::from(number) << 64 | 7).to_le_bytes())
}

fn asked(number: u64, seen: Mark) -> RequestStamp {
    RequestStamp { id: id(number), seen }
}

fn enter(log: &RequestLog, rows: &Rows, stamp: RequestStamp) -> Result<Entered, StoreError> {
    block_on(log.enter(stamp, rows))
}

/// Carries a request out as a leader does.
fn carry_out(log: &RequestLog, rows: &Rows, number: u64, seen: Mark) {
    let Ok(Entered::First(_running)) = enter(log, rows, asked(number, seen)) else { panic!("{number} is new") };
    let (slot, row) = log.note(id(number), number.to_le_bytes().to_vec());
    rows.commit(row);
    log.done(slot);
}

#[test]
fn a_request_that_was_committed_gets_its_first_answer_from_whoever_leads() {
    let rows = Rows::default();
    let log = next_term(&rows);
    carry_out(&log, &rows, 1, Mark(0));
    for leader in [log, next_term(&rows)] {
        let Ok(Entered::Done(answer)) = enter(&leader, &rows, asked(1, Mark(0))) else { panic!("it is known") };
        assert_eq!(answer, 1u64.to_le_bytes());
    }
}

#[test]
fn what_may_still_be_committed_is_neither_done_again_nor_said_to_be_done() {
    let rows = Rows::default();
    let log = next_term(&rows);
    let Ok(Entered::First(running)) = enter(&log, &rows, asked(1, Mark(0))) else { panic!("it is new") };
    let (_, row) = log.note(id(1), Vec::new());
    drop(running); // what became of the proposal was not heard
    let unknown = enter(&log, &rows, asked(1, Mark(0)));
    assert!(matches!(unknown, Err(StoreError::Unsettled { .. })), "it is asked again a little later");
    // Another leader does not find it, so no majority holds it and it never will be: it is done there.
    assert!(matches!(enter(&next_term(&rows), &rows, asked(1, Mark(0))), Ok(Entered::First(_))));
    // It was committed after all, and this leader applies it.
    rows.commit(row);
    assert!(matches!(enter(&log, &rows, asked(1, Mark(0))), Ok(Entered::Done(_))));
}

#[test]
fn what_was_refused_is_decided_anew() {
    let rows = Rows::default();
    let log = next_term(&rows);
    let Ok(Entered::First(running)) = enter(&log, &rows, asked(1, Mark(0))) else { panic!("it is new") };
    let (number, _) = log.note(id(1), Vec::new());
    log.refused(number);
    drop(running);
    assert!(matches!(enter(&log, &rows, asked(1, Mark(0))), Ok(Entered::First(_))));
}

#[test]
fn the_second_asking_waits_for_the_first() {
    let rows = Rows::default();
    let log = next_term(&rows);
    let Ok(Entered::First(running)) = enter(&log, &rows, asked(1, Mark(0))) else { panic!("it is new") };
    block_on(async {
        let mut second = pin!(log.enter(asked(1, Mark(0)), &rows));
        assert!(poll!(second.as_mut()).is_pending());
        let (number, row) = log.note(id(1), vec![5]);
        assert!(poll!(second.as_mut()).is_pending());
        rows.commit(row);
        log.done(number);
        drop(running);
        let Poll::Ready(Ok(Entered::Done(answer))) = poll!(second.as_mut()) else { panic!("it is known now") };
        assert_eq!(answer, [5]);
    });
}

#[test]
fn i_o5_a_request_that_is_out_of_the_window_is_not_known_and_not_done_again() {
    let rows = Rows::default();
    let mut log = next_term(&rows);
    for number in 0..REMEMBERED {
        carry_out(&log, &rows, number, log.mark());
    }
    assert!(matches!(enter(&log, &rows, asked(0, Mark(0))), Ok(Entered::Done(_))), "the oldest is still there");
    carry_out(&log, &rows, REMEMBERED, log.mark());
    assert_eq!(rows.0.borrow().len() as u64, REMEMBERED, "the next one takes the slot of the oldest");
    for round in 0..2 {
        let passed = enter(&log, &rows, asked(0, Mark(0)));
        assert!(matches!(passed, Err(StoreError::Unavailable { .. })), "round {round}");
        // One that saw what is remembered, and is not among it, never happened.
        assert!(matches!(enter(&log, &rows, asked(1 << 40, Mark(1))), Ok(Entered::First(_))), "round {round}");
        assert!(matches!(enter(&log, &rows, asked(1, Mark(1))), Ok(Entered::Done(_))), "round {round}");
        log = next_term(&rows);
    }
}

#[test]
fn a_mark_is_below_every_number_that_any_later_leader_gives() {
    let rows = Rows::default();
    let log = next_term(&rows);
    carry_out(&log, &rows, 1, Mark(0));
    let (_, lost) = log.note(id(2), Vec::new());
    let (number, row) = log.note(id(3), Vec::new());
    assert_eq!(log.mark(), Mark(1), "what is under way counts for nothing: it may never be committed");
    rows.commit(row);
    log.done(number);
    let seen = log.mark();
    drop(lost);
    let later = next_term(&rows);
    assert!(later.note(id(4), Vec::new()).0 >= seen.0);
    let before = next_term(&Rows::default());
    assert!(before.note(id(5), Vec::new()).0 >= before.mark().0, "a store from before requests were remembered");
}

#[test]
fn rows_survive_the_round_trip_and_what_is_none_is_refused() {
    let row = fuzz_remembered_seed();
    assert_eq!(fuzz_remembered(&row), Some(row.clone()));
    for len in 0..row.len() {
        assert!(Remembered::decode(&row[..len]).is_err(), "cut to {len}");
    }
    assert!(Remembered::decode(&[&[2], &row[1..]].concat()).is_err(), "another format");
    let rows = Rows::default();
    rows.0.borrow_mut().insert(slot(0), vec![9]);
    assert!(matches!(block_on(RequestLog::default().load(&rows)), Err(StoreError::Damaged { .. })));
}
