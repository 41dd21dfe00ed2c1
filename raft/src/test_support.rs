//! What the table tests run on: metadata files that lose power, and an executor that interleaves side threads.

use kiseki_types::meta::{MetaDir, MetaFile, MetaSpace};
use kiseki_types::runtime::{Clock, Instant, LocalBoxFuture, Ports, Rng, SideThreads, Spawn};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

const SECTOR_BYTES: usize = 512;

/// A small generator: tests must not depend on anything that changes between runs.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

#[derive(Debug, Clone)]
enum Pending {
    Write(usize, Vec<u8>),
    SetLen(usize),
}

#[derive(Debug, Default)]
struct FileState {
    durable: Vec<u8>,
    current: Vec<u8>,
    pending: Vec<Pending>,
}

#[derive(Debug)]
struct Power {
    /// Changes until the power fails; `None` never.
    changes_left: Option<u64>,
    changes: u64,
    lost: bool,
    /// Bytes that files made under a name ending in `.next` may still be written with; `None`: any number.
    space_left: Option<u64>,
    /// Whether renames fail.
    refuses_renames: bool,
    /// What the file system says of its room.
    space: Option<MetaSpace>,
}

impl Power {
    /// Whether the change that follows still happens; the one at which the power fails reaches the disk in part.
    fn spend(&mut self) -> io::Result<bool> {
        if self.lost {
            return Err(io::Error::other("no power"));
        }
        self.changes += 1;
        if let Some(left) = &mut self.changes_left {
            if *left == 0 {
                self.lost = true;
                return Ok(false);
            }
            *left -= 1;
        }
        Ok(true)
    }
}

#[derive(Debug)]
struct DirState {
    files: BTreeMap<String, Arc<Mutex<FileState>>>,
    power: Arc<Mutex<Power>>,
}

/// A metadata directory in memory that can lose power at any change.
#[derive(Debug)]
pub struct CrashDir(Mutex<DirState>);

#[derive(Debug)]
struct CrashFile {
    state: Arc<Mutex<FileState>>,
    power: Arc<Mutex<Power>>,
    is_next: bool,
}

fn no_power() -> io::Error {
    io::Error::other("the power failed")
}

impl CrashDir {
    pub fn new() -> Arc<CrashDir> {
        CrashDir::with(BTreeMap::new(), None)
    }

    fn with(files: BTreeMap<String, Arc<Mutex<FileState>>>, changes_left: Option<u64>) -> Arc<CrashDir> {
        let power = Arc::new(Mutex::new(Power {
            changes_left,
            changes: 0,
            lost: false,
            space_left: None,
            refuses_renames: false,
            space: None,
        }));
        Arc::new(CrashDir(Mutex::new(DirState { files, power })))
    }

    /// Lets the power fail at the `changes`-th change from now; power that was lost is back.
    pub fn fail_after(&self, changes: u64) {
        let state = self.0.lock().unwrap();
        let mut power = state.power.lock().unwrap();
        power.changes_left = Some(changes);
        power.lost = false;
    }

    /// Leaves room for `bytes` in the files that are to replace others, or any.
    pub fn leave_room_in_next(&self, bytes: Option<u64>) {
        self.0.lock().unwrap().power.lock().unwrap().space_left = bytes;
    }

    /// Says from now on that the file system has so much room.
    pub fn say_space(&self, space: MetaSpace) {
        self.0.lock().unwrap().power.lock().unwrap().space = Some(space);
    }

    /// Lets renames fail, or work again.
    pub fn refuse_renames(&self, refuses: bool) {
        self.0.lock().unwrap().power.lock().unwrap().refuses_renames = refuses;
    }

    /// Changes so far.
    pub fn changes(&self) -> u64 {
        self.0.lock().unwrap().power.lock().unwrap().changes
    }

    /// What a new start finds: synced bytes, and of the others any subset of 512-byte units.
    pub fn after_power_cut(&self, dice: &mut Dice) -> Arc<CrashDir> {
        let state = self.0.lock().unwrap();
        state.power.lock().unwrap().lost = true;
        let mut files = BTreeMap::new();
        // One luck per cut: some lose almost all that was not synced, some keep almost all.
        let keep_of_8 = dice.below(9);
        for (name, file) in &state.files {
            let file = file.lock().unwrap();
            let mut durable = file.durable.clone();
            for pending in &file.pending {
                match pending {
                    Pending::SetLen(len) if dice.below(8) < keep_of_8 => durable.resize(*len, 0),
                    Pending::SetLen(_) => {}
                    Pending::Write(offset, bytes) => {
                        let mut at = 0;
                        while at < bytes.len() {
                            let unit_end = ((offset + at) / SECTOR_BYTES + 1) * SECTOR_BYTES - offset;
                            let end = unit_end.min(bytes.len());
                            if dice.below(8) < keep_of_8 {
                                write_into(&mut durable, offset + at, &bytes[at..end]);
                            }
                            at = end;
                        }
                    }
                }
            }
            let current = durable.clone();
            files.insert(name.clone(), Arc::new(Mutex::new(FileState { durable, current, pending: Vec::new() })));
        }
        CrashDir::with(files, None)
    }

    /// What a new start finds after the process was killed: everything written, synced or not; the power may still fail.
    pub fn after_kill(&self) -> Arc<CrashDir> {
        let state = self.0.lock().unwrap();
        state.power.lock().unwrap().lost = true;
        CrashDir::with(state.files.clone(), None)
    }

    /// Runs `change` on the bytes of a file, as rot or a hand would.
    pub fn edit(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let state = self.0.lock().unwrap();
        let mut file = state.files[name].lock().unwrap();
        change(&mut file.current);
        file.durable = file.current.clone();
        file.pending.clear();
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        self.0.lock().unwrap().files[name].lock().unwrap().current.clone()
    }

    fn handle(state: &DirState, name: &str) -> Arc<dyn MetaFile> {
        let is_next = name.ends_with(".next");
        Arc::new(CrashFile { state: Arc::clone(&state.files[name]), power: Arc::clone(&state.power), is_next })
    }
}

fn write_into(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if content.len() < offset + bytes.len() {
        content.resize(offset + bytes.len(), 0);
    }
    content[offset..offset + bytes.len()].copy_from_slice(bytes);
}

impl MetaFile for CrashFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state.lock().unwrap().current.len() as u64)
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        let goes_on = self.power.lock().unwrap().spend()?;
        let mut state = self.state.lock().unwrap();
        state.current.resize(len_bytes as usize, 0);
        state.pending.push(Pending::SetLen(len_bytes as usize));
        if goes_on { Ok(()) } else { Err(no_power()) }
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state.lock().unwrap();
        let end = offset as usize + out.len();
        let Some(bytes) = state.current.get(offset as usize..end) else {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        };
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let goes_on = {
            let mut power = self.power.lock().unwrap();
            if let Some(left) = power.space_left.as_mut().filter(|_| self.is_next) {
                let rest = left.checked_sub(bytes.len() as u64);
                *left = rest.ok_or(io::ErrorKind::StorageFull)?;
            }
            power.spend()?
        };
        let mut state = self.state.lock().unwrap();
        write_into(&mut state.current, offset as usize, bytes);
        state.pending.push(Pending::Write(offset as usize, bytes.to_vec()));
        if goes_on { Ok(()) } else { Err(no_power()) }
    }

    fn sync(&self) -> io::Result<()> {
        if !self.power.lock().unwrap().spend()? {
            return Err(no_power());
        }
        let mut state = self.state.lock().unwrap();
        state.durable = state.current.clone();
        state.pending.clear();
        Ok(())
    }
}

impl MetaDir for CrashDir {
    fn spaces(&self) -> io::Result<Vec<MetaSpace>> {
        Ok(self.0.lock().unwrap().power.lock().unwrap().space.into_iter().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn MetaFile>> {
        let state = self.0.lock().unwrap();
        if !state.files.contains_key(name) {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        Ok(CrashDir::handle(&state, name))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn MetaFile>> {
        let mut state = self.0.lock().unwrap();
        if !state.power.lock().unwrap().spend()? {
            return Err(no_power());
        }
        if state.files.contains_key(name) {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        state.files.insert(name.to_owned(), Arc::default());
        Ok(CrashDir::handle(&state, name))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().unwrap().files.keys().cloned().collect())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        if !state.power.lock().unwrap().spend()? {
            return Err(no_power());
        }
        state.files.remove(name);
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        if !state.power.lock().unwrap().spend()? {
            return Err(no_power());
        }
        if state.power.lock().unwrap().refuses_renames {
            return Err(io::Error::other("no rename"));
        }
        let file = state.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.files.insert(to.to_owned(), file);
        Ok(())
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// Time that a step of the runtime takes.
const STEP_TIME: Duration = Duration::from_micros(20);

/// Runs tasks and offloaded jobs in an order drawn from a seed; jobs of one queue stay in order.
pub struct TestRuntime {
    dice: RefCell<Dice>,
    tasks: RefCell<Vec<LocalBoxFuture<'static, ()>>>,
    queues: RefCell<BTreeMap<u64, VecDeque<Job>>>,
    now: Rc<Cell<u64>>,
    step_time: Cell<Duration>,
}

impl TestRuntime {
    pub fn new(seed: u64) -> Rc<TestRuntime> {
        Rc::new(TestRuntime {
            dice: RefCell::new(Dice::new(seed)),
            tasks: RefCell::default(),
            queues: RefCell::default(),
            now: Rc::default(),
            step_time: Cell::new(STEP_TIME),
        })
    }

    pub fn ports(self: &Rc<Self>) -> Ports {
        self.clone()
    }

    /// Jobs that no side thread has begun.
    pub fn jobs_waiting(&self) -> usize {
        self.queues.borrow().values().map(VecDeque::len).sum()
    }

    /// From now on steps take no time.
    pub fn stop_clock(&self) {
        self.step_time.set(Duration::ZERO);
    }

    /// Runs until there is nothing left to do.
    pub fn run_out(&self) {
        for _ in 0..1_000_000 {
            if !self.step() {
                return;
            }
        }
        panic!("there is always something to do");
    }

    /// Time passes.
    pub fn pass(&self, span: Duration) {
        self.now.set((Instant(self.now.get()) + span).0);
    }

    /// Polls every task once and runs at most one job; says whether there was anything to do.
    pub fn step(&self) -> bool {
        self.pass(self.step_time.get());
        let mut context = Context::from_waker(std::task::Waker::noop());
        let tasks = std::mem::take(&mut *self.tasks.borrow_mut());
        let mut busy = !tasks.is_empty();
        for mut task in tasks {
            if task.as_mut().poll(&mut context).is_pending() {
                self.tasks.borrow_mut().push(task);
            }
        }
        let job = {
            let mut queues = self.queues.borrow_mut();
            queues.retain(|_, jobs| !jobs.is_empty());
            let pick = self.dice.borrow_mut().below(queues.len().max(1) as u64) as usize;
            queues.values_mut().nth(pick).and_then(VecDeque::pop_front)
        };
        if let Some(job) = job {
            job();
            busy = true;
        }
        busy
    }

    /// Runs until `future` ends.
    pub fn run<T>(&self, future: impl Future<Output = T>) -> T {
        let mut context = Context::from_waker(std::task::Waker::noop());
        let mut future = pin!(future);
        for _ in 0..1_000_000 {
            if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
                return value;
            }
            self.step();
        }
        panic!("the future never ends");
    }

    /// The process is killed: tasks and jobs that have not run never do.
    pub fn kill(&self) {
        let tasks = std::mem::take(&mut *self.tasks.borrow_mut());
        drop(tasks);
        let queues = std::mem::take(&mut *self.queues.borrow_mut());
        drop(queues);
    }
}

impl Clock for TestRuntime {
    fn now(&self) -> Instant {
        Instant(self.now.get())
    }
    fn unix_time_ms(&self) -> u64 {
        0
    }
    fn sleep_until(&self, deadline: Instant) -> LocalBoxFuture<'static, ()> {
        let now = Rc::clone(&self.now);
        Box::pin(std::future::poll_fn(move |_| if now.get() < deadline.0 { Poll::Pending } else { Poll::Ready(()) }))
    }
}

impl Rng for TestRuntime {
    fn fill_random(&self, out: &mut [u8]) {
        let bytes = self.dice.borrow_mut().bytes(out.len());
        out.copy_from_slice(&bytes);
    }
}

impl Spawn for TestRuntime {
    fn spawn(&self, _name: &'static str, task: LocalBoxFuture<'static, ()>) {
        self.tasks.borrow_mut().push(task);
    }
    fn yield_now(&self) -> LocalBoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}

impl SideThreads for TestRuntime {
    fn offload_job(&self, queue: u64, job: Box<dyn FnOnce() + Send>) {
        self.queues.borrow_mut().entry(queue).or_default().push_back(job);
    }
}
