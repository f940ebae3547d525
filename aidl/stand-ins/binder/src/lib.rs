// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A stand-in for AOSP's `libbinder_rs`: what this project uses of it, as declared in
//! frameworks/native/libs/binder/rust/src. For type-checks only; never built by Soong. There
//! is no binder behind it: nothing here runs.

#![allow(non_camel_case_types)]

use std::fmt;
use std::ops::Deref;
use std::os::fd::OwnedFd;

/// What a call returns.
pub type Result<T> = std::result::Result<T, Status>;

/// What the transport says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusCode {
    /// Nobody knows.
    UNKNOWN_ERROR = i32::MIN as isize,
}

/// What kind of refusal it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExceptionCode {
    /// The interface has a constant for it.
    SERVICE_SPECIFIC = -8,
}

/// How a call went.
pub struct Status(());

impl Status {
    /// A refusal with a constant of an interface.
    pub fn new_service_specific_error_str<T: AsRef<str>>(_err: i32, _message: Option<T>) -> Self {
        unimplemented!()
    }

    /// What kind of refusal it is.
    pub fn exception_code(&self) -> ExceptionCode {
        unimplemented!()
    }

    /// The interface's constant.
    pub fn service_specific_error(&self) -> i32 {
        unimplemented!()
    }

    /// All of it, for people.
    pub fn get_description(&self) -> String {
        unimplemented!()
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result {
        unimplemented!()
    }
}

impl fmt::Display for Status {
    fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result {
        unimplemented!()
    }
}

impl std::error::Error for Status {}

/// Every interface.
pub trait Interface: Send + Sync {
    /// The object without its interface.
    fn as_binder(&self) -> SpIBinder {
        unimplemented!()
    }
}

/// An interface that an object can turn out to have.
pub trait FromIBinder: Interface {
    /// Looks whether it has.
    fn try_from(ibinder: SpIBinder) -> std::result::Result<Strong<Self>, StatusCode>;
}

/// An object of any interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpIBinder(());

/// What can be done with any object.
pub trait IBinder {
    /// Has `recipient` told when the process behind the object is gone.
    fn link_to_death(
        &mut self,
        recipient: &mut DeathRecipient,
    ) -> std::result::Result<(), StatusCode>;
}

impl IBinder for SpIBinder {
    fn link_to_death(
        &mut self,
        _recipient: &mut DeathRecipient,
    ) -> std::result::Result<(), StatusCode> {
        unimplemented!()
    }
}

/// Hears that a process is gone, until it is dropped.
pub struct DeathRecipient(());

impl DeathRecipient {
    /// Calls `callback` then.
    pub fn new<F>(_callback: F) -> Self
    where
        F: Fn() + Send + Sync + 'static,
    {
        unimplemented!()
    }
}

/// An object that stays while this does.
pub struct Strong<I: FromIBinder + ?Sized>(Box<I>);

impl<I: FromIBinder + ?Sized> Clone for Strong<I> {
    fn clone(&self) -> Self {
        unimplemented!()
    }
}

impl<I: FromIBinder + ?Sized> Deref for Strong<I> {
    type Target = I;

    fn deref(&self) -> &I {
        &self.0
    }
}

impl<I: FromIBinder + ?Sized> PartialEq for Strong<I> {
    fn eq(&self, _other: &Self) -> bool {
        unimplemented!()
    }
}

impl<I: FromIBinder + ?Sized> Eq for Strong<I> {}

/// What an object of ours is made with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BinderFeatures {}

/// A descriptor in a message.
#[derive(Debug)]
pub struct ParcelFileDescriptor(OwnedFd);

impl ParcelFileDescriptor {
    /// Takes one over.
    pub fn new<F: Into<OwnedFd>>(fd: F) -> Self {
        Self(fd.into())
    }
}

impl AsRef<OwnedFd> for ParcelFileDescriptor {
    fn as_ref(&self) -> &OwnedFd {
        &self.0
    }
}

impl From<ParcelFileDescriptor> for OwnedFd {
    fn from(fd: ParcelFileDescriptor) -> Self {
        fd.0
    }
}
