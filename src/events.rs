//! What an emulator does, told to whoever listens: counters, logs, traces.
//!
//! An [`IoEmulator`](crate::IoEmulator) has a listener of type [`NoEvents`] until the builder is given another; its
//! methods are empty and leave nothing in the compiled code. A listener is a type parameter, not a pointer: what it
//! does not implement costs nothing either.
//!
//! ```text
//!   execute ──▶ permitted? ──no──▶ denied
//!                  │ yes
//!               approve ──error──▶ nothing: Error::Stopped, no access
//!                  │ ok
//!               before ──▶ the access ──▶ after      it was made
//!                                     ├─▶ faulted    the CPU refused it
//!                                     └─▶ refused    a device model did
//! ```
//!
//! [`approve`](Events::approve) is the one method that decides: a listener that has to write down an access before it is
//! made stops it there if it cannot.
//!
//! A device model that panics takes the control flow with it: `before` then has no sequel. Bytes that do not decode are
//! no access, and no event.
//!
//! # When a listener panics
//!
//! Its panic goes on in the caller of the emulator, which can be used further, and the registers say what has happened:
//!
//! | it panics in | what has happened | the registers are |
//! |---|---|---|
//! | [`approve`](Events::approve), [`before`](Events::before), [`denied`](Events::denied) | nothing | as they were given |
//! | [`after`](Events::after) | the access, which cannot be taken back and must not be made again | as it left them, [`Outcome::gprs`] |
//! | [`faulted`](Events::faulted), [`refused`](Events::refused) | what the error would have said | as they were given, but that RCX, RSI and RDI of INS and OUTS say how far they came |
//!
//! The memory of INS holds as much as these registers say. The second of a pair is not told what the first one panics at.
//!
//! ```
//! use ioemul::events::{Attempt, Events, Outcome};
//! use ioemul::{Gprs, IoEmulator, PortSet, SoftwareBus};
//!
//! /// Counts the accesses that were made, and those that were not permitted.
//! #[derive(Default)]
//! struct Counters {
//!     made: u64,
//!     denied: u64,
//! }
//!
//! impl Events for Counters {
//!     fn after(&mut self, _: &Attempt<'_>, _: &Outcome<'_>) {
//!         self.made += 1;
//!     }
//!     fn denied(&mut self, _: &Attempt<'_>) {
//!         self.denied += 1;
//!     }
//! }
//!
//! let ports = PortSet::from(0x70..=0x71);
//! let builder = IoEmulator::builder().ports(ports).bus(SoftwareBus::new());
//! let mut emulator = builder.events(Counters::default()).build()?;
//! let mut gprs = Gprs::default();
//! emulator.emulate(&[0xe4, 0x71], &mut gprs)?; // in al, 0x71
//! emulator.emulate(&[0xe4, 0x72], &mut gprs).unwrap_err();
//! assert_eq!((emulator.events().made, emulator.events().denied), (1, 1));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::time::{Duration, Instant};

use crate::{DeviceError, Error, Gprs, IoFault, IoInsn, PortAccess};

#[cfg(feature = "tracing")]
mod log;
#[cfg(feature = "tracing")]
pub use log::Tracing;

/// An instruction that an emulator was asked to execute.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Attempt<'a> {
    /// The instruction.
    pub insn: IoInsn,
    /// The first port that it touches.
    pub port: u16,
    /// The registers before it, as the caller gave them.
    pub gprs: &'a Gprs,
}

/// What came of an [`Attempt`] that was permitted.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Outcome<'a> {
    /// The registers after it, as the caller gets them.
    pub gprs: &'a Gprs,
    /// The bytes that INS or OUTS moved; empty for IN and OUT.
    pub data: &'a [u8],
    /// How long the access took, if the listener asked for it ([`Events::TIMED`]).
    pub duration: Option<Duration>,
}

/// A listener. Every method does nothing unless implemented; [`Self::approve`] lets every access pass.
#[allow(unused_variables)]
pub trait Events {
    /// Whether the clock is read before and after each access. It takes some 20 ns to read it twice.
    const TIMED: bool = false;

    /// Whether a permitted access may be made, asked right before [`Self::before`]: once for an instruction, also for INS
    /// and OUTS and for an instruction that a quirk stands for. By default every access may.
    ///
    /// ```
    /// use ioemul::events::{Attempt, Events};
    /// use ioemul::{DeviceError, Error, IoEmulator, PortSet, SoftwareBus, Width};
    ///
    /// /// Lets so many accesses pass.
    /// struct Budget(u32);
    /// impl Events for Budget {
    ///     fn approve(&mut self, _: &Attempt<'_>) -> Result<(), DeviceError> {
    ///         self.0 = self.0.checked_sub(1).ok_or("the budget is spent")?;
    ///         Ok(())
    ///     }
    /// }
    ///
    /// let builder = IoEmulator::builder().ports(PortSet::all()).bus(SoftwareBus::new());
    /// let mut emulator = builder.events(Budget(1)).build()?;
    /// emulator.port_in(0x60, Width::Byte)?;
    /// let error = emulator.port_in(0x60, Width::Byte).unwrap_err();
    /// assert!(matches!(error, Error::Stopped { .. }));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The reason why the access must not be made. The emulator returns it as the source of [`Error::Stopped`]; the
    /// registers are as they were given, and neither [`Self::before`] nor a method after it is called.
    #[inline]
    fn approve(&mut self, attempt: &Attempt<'_>) -> Result<(), DeviceError> {
        Ok(())
    }

    /// A permitted access is about to be made.
    #[inline]
    fn before(&mut self, attempt: &Attempt<'_>) {}

    /// It was made.
    #[inline]
    fn after(&mut self, attempt: &Attempt<'_>, outcome: &Outcome<'_>) {}

    /// The emulator's port set does not permit the access.
    #[inline]
    fn denied(&mut self, attempt: &Attempt<'_>) {}

    /// The CPU refused the access. A string instruction may have come part of the way.
    #[inline]
    fn faulted(&mut self, attempt: &Attempt<'_>, outcome: &Outcome<'_>, fault: &IoFault) {}

    /// A device model refused the access. A string instruction may have come part of the way.
    #[inline]
    fn refused(&mut self, attempt: &Attempt<'_>, outcome: &Outcome<'_>, why: &DeviceError) {}
}

/// Nobody listens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoEvents;

impl Events for NoEvents {}

/// Passes every event on to another listener.
macro_rules! pass_on {
    ($self:ident => $listener:expr) => {
        fn approve(&mut $self, attempt: &Attempt<'_>) -> Result<(), DeviceError> {
            $listener.approve(attempt)
        }

        fn before(&mut $self, attempt: &Attempt<'_>) {
            $listener.before(attempt);
        }

        fn after(&mut $self, attempt: &Attempt<'_>, outcome: &Outcome<'_>) {
            $listener.after(attempt, outcome);
        }

        fn denied(&mut $self, attempt: &Attempt<'_>) {
            $listener.denied(attempt);
        }

        fn faulted(&mut $self, attempt: &Attempt<'_>, outcome: &Outcome<'_>, fault: &IoFault) {
            $listener.faulted(attempt, outcome, fault);
        }

        fn refused(&mut $self, attempt: &Attempt<'_>, outcome: &Outcome<'_>, why: &DeviceError) {
            $listener.refused(attempt, outcome, why);
        }
    };
}

/// A listener lent to an emulator.
impl<E: Events + ?Sized> Events for &mut E {
    const TIMED: bool = E::TIMED;
    pass_on!(self => (**self));
}

/// A listener of any size.
impl<E: Events + ?Sized> Events for Box<E> {
    const TIMED: bool = E::TIMED;
    pass_on!(self => (**self));
}

/// A listener that may not be there: whether it is, is asked at each event.
///
/// ```
/// use ioemul::events::{Attempt, Events};
/// use ioemul::{IoEmulator, SoftwareBus, Width};
///
/// struct Complaints;
/// impl Events for Complaints {
///     fn denied(&mut self, attempt: &Attempt<'_>) {
///         eprintln!("{} of port {:#x}", attempt.insn, attempt.port);
///     }
/// }
///
/// let verbose = std::env::args().any(|argument| argument == "--verbose");
/// let listener = verbose.then_some(Complaints);
/// let mut emulator = IoEmulator::builder().bus(SoftwareBus::new()).events(listener).build()?;
/// emulator.port_in(0x60, Width::Byte).unwrap_err();
/// # Ok::<(), ioemul::BuildError>(())
/// ```
impl<E: Events> Events for Option<E> {
    const TIMED: bool = E::TIMED;

    fn approve(&mut self, attempt: &Attempt<'_>) -> Result<(), DeviceError> {
        self.as_mut().map_or(Ok(()), |events| events.approve(attempt))
    }

    fn before(&mut self, attempt: &Attempt<'_>) {
        self.iter_mut().for_each(|events| events.before(attempt));
    }

    fn after(&mut self, attempt: &Attempt<'_>, outcome: &Outcome<'_>) {
        self.iter_mut().for_each(|events| events.after(attempt, outcome));
    }

    fn denied(&mut self, attempt: &Attempt<'_>) {
        self.iter_mut().for_each(|events| events.denied(attempt));
    }

    fn faulted(&mut self, attempt: &Attempt<'_>, outcome: &Outcome<'_>, fault: &IoFault) {
        self.iter_mut().for_each(|events| events.faulted(attempt, outcome, fault));
    }

    fn refused(&mut self, attempt: &Attempt<'_>, outcome: &Outcome<'_>, why: &DeviceError) {
        self.iter_mut().for_each(|events| events.refused(attempt, outcome, why));
    }
}

/// Two listeners. The first is told first, and asked first whether an access may be made: the second is not asked where
/// the first one stops it.
///
/// A listener that announces each access when it is asked (`TraceWriter::write_ahead` of the feature `trace`)
/// goes last: what it has announced, nobody behind it stops.
impl<A: Events, B: Events> Events for (A, B) {
    const TIMED: bool = A::TIMED || B::TIMED;

    fn approve(&mut self, attempt: &Attempt<'_>) -> Result<(), DeviceError> {
        self.0.approve(attempt)?;
        self.1.approve(attempt)
    }

    fn before(&mut self, attempt: &Attempt<'_>) {
        self.0.before(attempt);
        self.1.before(attempt);
    }

    fn after(&mut self, attempt: &Attempt<'_>, outcome: &Outcome<'_>) {
        self.0.after(attempt, &as_asked::<A>(outcome));
        self.1.after(attempt, &as_asked::<B>(outcome));
    }

    fn denied(&mut self, attempt: &Attempt<'_>) {
        self.0.denied(attempt);
        self.1.denied(attempt);
    }

    fn faulted(&mut self, attempt: &Attempt<'_>, outcome: &Outcome<'_>, fault: &IoFault) {
        self.0.faulted(attempt, &as_asked::<A>(outcome), fault);
        self.1.faulted(attempt, &as_asked::<B>(outcome), fault);
    }

    fn refused(&mut self, attempt: &Attempt<'_>, outcome: &Outcome<'_>, why: &DeviceError) {
        self.0.refused(attempt, &as_asked::<A>(outcome), why);
        self.1.refused(attempt, &as_asked::<B>(outcome), why);
    }
}

/// The time was taken for any listener: this one may not have asked for it.
fn as_asked<'a, E: Events>(outcome: &Outcome<'a>) -> Outcome<'a> {
    Outcome { duration: outcome.duration.filter(|_| E::TIMED), ..*outcome }
}

/// Any listener, for a program that decides while it runs who listens: `Box<dyn DynEvents>`, `&mut dyn DynEvents`, and
/// both with `Send`, or `Send` and `Sync`, are listeners. Every type that implements [`Events`] is one; there is nothing to implement.
///
/// The clock is read at each access, whoever listens behind it; a listener that did not ask for the time is not told.
///
/// ```
/// use ioemul::events::{Attempt, DynEvents, Events, NoEvents, Outcome};
/// use ioemul::{IoEmulator, PortSet, SoftwareBus, Width};
///
/// struct Log;
/// impl Events for Log {
///     fn after(&mut self, attempt: &Attempt<'_>, _: &Outcome<'_>) {
///         println!("{}", attempt.insn);
///     }
/// }
///
/// let listener: Box<dyn DynEvents + Send> = match std::env::var_os("LOG") {
///     Some(_) => Box::new(Log),
///     None => Box::new(NoEvents),
/// };
/// let mut emulator = IoEmulator::builder().ports(PortSet::all()).bus(SoftwareBus::new()).events(listener).build()?;
/// emulator.port_in(0x60, Width::Byte)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias("dyn", "Box<dyn Events>"))]
pub trait DynEvents: object::Listener {}

impl<E: Events> DynEvents for E {}

/// What [`Events`] is without its constant: a trait that there can be objects of. Nobody else calls it.
mod object {
    use super::{Attempt, DeviceError, Events, IoFault, Outcome, as_asked};

    pub enum Event<'a> {
        Before,
        After(&'a Outcome<'a>),
        Denied,
        Faulted(&'a Outcome<'a>, &'a IoFault),
        Refused(&'a Outcome<'a>, &'a DeviceError),
    }

    pub trait Listener {
        fn ask(&mut self, attempt: &Attempt<'_>) -> Result<(), DeviceError>;
        fn tell(&mut self, attempt: &Attempt<'_>, event: Event<'_>);
    }

    impl<E: Events> Listener for E {
        fn ask(&mut self, attempt: &Attempt<'_>) -> Result<(), DeviceError> {
            self.approve(attempt)
        }

        fn tell(&mut self, attempt: &Attempt<'_>, event: Event<'_>) {
            match event {
                Event::Before => self.before(attempt),
                Event::After(outcome) => self.after(attempt, &as_asked::<E>(outcome)),
                Event::Denied => self.denied(attempt),
                Event::Faulted(outcome, fault) => self.faulted(attempt, &as_asked::<E>(outcome), fault),
                Event::Refused(outcome, why) => self.refused(attempt, &as_asked::<E>(outcome), why),
            }
        }
    }
}

/// The same listener, as an object.
macro_rules! object_listens {
    ($object:ty) => {
        impl Events for $object {
            const TIMED: bool = true;

            fn approve(&mut self, attempt: &Attempt<'_>) -> Result<(), DeviceError> {
                self.ask(attempt)
            }

            fn before(&mut self, attempt: &Attempt<'_>) {
                self.tell(attempt, object::Event::Before);
            }

            fn after(&mut self, attempt: &Attempt<'_>, outcome: &Outcome<'_>) {
                self.tell(attempt, object::Event::After(outcome));
            }

            fn denied(&mut self, attempt: &Attempt<'_>) {
                self.tell(attempt, object::Event::Denied);
            }

            fn faulted(&mut self, attempt: &Attempt<'_>, outcome: &Outcome<'_>, fault: &IoFault) {
                self.tell(attempt, object::Event::Faulted(outcome, fault));
            }

            fn refused(&mut self, attempt: &Attempt<'_>, outcome: &Outcome<'_>, why: &DeviceError) {
                self.tell(attempt, object::Event::Refused(outcome, why));
            }
        }
    };
}

object_listens!(dyn DynEvents + '_);
object_listens!(dyn DynEvents + Send + '_);
object_listens!(dyn DynEvents + Send + Sync + '_);

/// The clock, for a listener that wants it.
#[inline]
pub(crate) fn start<E: Events>() -> Option<Instant> {
    E::TIMED.then(Instant::now)
}

/// Asks a listener whether the access may be made, and tells it that it is about to be.
#[inline]
pub(crate) fn begin<E: Events>(events: &mut E, attempt: &Attempt<'_>) -> Result<(), Error> {
    events.approve(attempt).map_err(|source| stopped(attempt, source))?;
    events.before(attempt);
    Ok(())
}

#[cold]
fn stopped(attempt: &Attempt<'_>, source: DeviceError) -> Error {
    Error::Stopped { access: PortAccess::of(attempt.insn, attempt.gprs), source }
}

/// Tells a listener how an access ended.
#[inline]
pub(crate) fn end<E: Events>(
    events: &mut E,
    attempt: &Attempt<'_>,
    (gprs, data): (&Gprs, &[u8]),
    started: Option<Instant>,
    result: &Result<(), Error>,
) {
    let outcome = Outcome { gprs, data, duration: started.map(|started| started.elapsed()) };
    match result {
        Ok(()) => events.after(attempt, &outcome),
        Err(Error::Fault { fault, .. }) => events.faulted(attempt, &outcome, fault),
        Err(Error::Device { source, .. }) => events.refused(attempt, &outcome, source),
        Err(_) => {} // decided before the access, and told then
    }
}
