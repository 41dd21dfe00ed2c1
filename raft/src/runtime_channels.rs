//! openraft's channel and mutex traits on `tokio::sync` types, which work on any executor.

use openraft::async_runtime::{Mpsc, MpscReceiver, MpscSender, MpscWeakSender, Mutex, Oneshot, OneshotSender};
use openraft::async_runtime::{TryRecvError, Watch, WatchReceiver, WatchSender, watch as rt_watch};
use std::future::Future;
use tokio::sync::{mpsc, oneshot, watch};

/// Names the channel types.
#[derive(Debug)]
pub struct Channels;

/// Sender of a bounded queue.
pub struct QueueSender<T>(mpsc::Sender<T>);

/// Receiver of a bounded queue.
pub struct QueueReceiver<T>(mpsc::Receiver<T>);

/// Sender that does not keep its queue open.
pub struct WeakQueueSender<T>(mpsc::WeakSender<T>);

impl<T> Clone for QueueSender<T> {
    fn clone(&self) -> Self {
        QueueSender(self.0.clone())
    }
}

impl<T> Clone for WeakQueueSender<T> {
    fn clone(&self) -> Self {
        WeakQueueSender(self.0.clone())
    }
}

impl Mpsc for Channels {
    type Sender<T> = QueueSender<T>;
    type Receiver<T> = QueueReceiver<T>;
    type WeakSender<T> = WeakQueueSender<T>;

    fn channel<T>(capacity: usize) -> (QueueSender<T>, QueueReceiver<T>) {
        let (sender, receiver) = mpsc::channel(capacity);
        (QueueSender(sender), QueueReceiver(receiver))
    }
}

impl<T> MpscSender<Channels, T> for QueueSender<T> {
    async fn send(&self, message: T) -> Result<(), openraft::async_runtime::mpsc::SendError<T>> {
        self.0.send(message).await.map_err(|refused| openraft::async_runtime::mpsc::SendError(refused.0))
    }

    fn downgrade(&self) -> WeakQueueSender<T> {
        WeakQueueSender(self.0.downgrade())
    }
}

impl<T> MpscReceiver<T> for QueueReceiver<T> {
    fn recv(&mut self) -> impl Future<Output = Option<T>> {
        self.0.recv()
    }

    fn try_recv(&mut self) -> Result<T, TryRecvError> {
        self.0.try_recv().map_err(|error| match error {
            mpsc::error::TryRecvError::Empty => TryRecvError::Empty,
            mpsc::error::TryRecvError::Disconnected => TryRecvError::Disconnected,
        })
    }
}

impl<T> MpscWeakSender<Channels, T> for WeakQueueSender<T> {
    fn upgrade(&self) -> Option<QueueSender<T>> {
        self.0.upgrade().map(QueueSender)
    }
}

/// Sender of a watched value.
pub struct ValueSender<T>(watch::Sender<T>);

/// Receiver of a watched value.
pub struct ValueReceiver<T>(watch::Receiver<T>);

impl<T> Clone for ValueSender<T> {
    fn clone(&self) -> Self {
        ValueSender(self.0.clone())
    }
}

impl<T> Clone for ValueReceiver<T> {
    fn clone(&self) -> Self {
        ValueReceiver(self.0.clone())
    }
}

impl Watch for Channels {
    type Sender<T> = ValueSender<T>;
    type Receiver<T> = ValueReceiver<T>;
    type Ref<'a, T: 'a> = watch::Ref<'a, T>;

    fn channel<T>(init: T) -> (ValueSender<T>, ValueReceiver<T>) {
        let (sender, receiver) = watch::channel(init);
        (ValueSender(sender), ValueReceiver(receiver))
    }
}

impl<T> WatchSender<Channels, T> for ValueSender<T> {
    fn send(&self, value: T) -> Result<(), rt_watch::SendError<T>> {
        self.0.send(value).map_err(|refused| rt_watch::SendError(refused.0))
    }

    fn send_if_modified<F>(&self, modify: F) -> bool
    where
        F: FnOnce(&mut T) -> bool,
    {
        self.0.send_if_modified(modify)
    }

    fn borrow_watched(&self) -> watch::Ref<'_, T> {
        self.0.borrow()
    }

    fn subscribe(&self) -> ValueReceiver<T> {
        ValueReceiver(self.0.subscribe())
    }
}

impl<T> WatchReceiver<Channels, T> for ValueReceiver<T> {
    async fn changed(&mut self) -> Result<(), rt_watch::RecvError> {
        self.0.changed().await.map_err(|_| rt_watch::RecvError(()))
    }

    fn borrow_watched(&self) -> watch::Ref<'_, T> {
        self.0.borrow()
    }

    fn borrow_and_update(&mut self) -> watch::Ref<'_, T> {
        self.0.borrow_and_update()
    }
}

/// Sender of one value.
pub struct OnceSender<T>(oneshot::Sender<T>);

impl Oneshot for Channels {
    type Sender<T> = OnceSender<T>;
    type Receiver<T> = oneshot::Receiver<T>;
    type ReceiverError = oneshot::error::RecvError;

    fn channel<T>() -> (OnceSender<T>, oneshot::Receiver<T>) {
        let (sender, receiver) = oneshot::channel();
        (OnceSender(sender), receiver)
    }
}

impl<T> OneshotSender<T> for OnceSender<T> {
    fn send(self, value: T) -> Result<(), T> {
        self.0.send(value)
    }
}

/// A fair lock held across awaits.
pub struct LocalMutex<T>(tokio::sync::Mutex<T>);

impl<T: 'static> Mutex<T> for LocalMutex<T> {
    type Guard<'a> = tokio::sync::MutexGuard<'a, T>;

    fn new(value: T) -> Self {
        LocalMutex(tokio::sync::Mutex::new(value))
    }

    fn lock(&self) -> impl Future<Output = Self::Guard<'_>> {
        self.0.lock()
    }
}
