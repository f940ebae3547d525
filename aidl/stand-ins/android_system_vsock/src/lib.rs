// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A stand-in for what AOSP's AIDL compiler makes of `aidl/`: what this project uses of it.
//! For type-checks only; never built by Soong. Nothing here runs.
//!
//! It is held against `aidl/` by the sources that use it: Cargo compiles them against what
//! `rsbinder-aidl` makes of `aidl/`, the type-check for Android against this.

#![allow(missing_docs, non_snake_case)]

/// An enum: as with AIDL, any number can arrive.
macro_rules! numbers {
    ($name:ident { $($constant:ident = $number:literal),+ }) => {
        pub mod $name {
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
            pub struct $name(pub i32);

            impl $name {
                $(pub const $constant: Self = Self($number);)+
            }
        }
    };
}

/// An interface: its trait, and a way to make an object of what implements it.
macro_rules! interface {
    ($name:ident, $native:ident { $($methods:tt)* }) => {
        pub trait $name: binder::Interface + Send {
            $($methods)*
        }

        pub struct $native(());

        impl $native {
            pub fn new_binder<T: $name + Sync + Send + 'static>(
                _inner: T,
                _features: binder::BinderFeatures,
            ) -> binder::Strong<dyn $name> {
                unimplemented!()
            }
        }

        impl binder::FromIBinder for dyn $name {
            fn try_from(
                _ibinder: binder::SpIBinder,
            ) -> Result<binder::Strong<dyn $name>, binder::StatusCode> {
                unimplemented!()
            }
        }
    };
}

pub mod vsock;

pub mod aidl {
    pub mod android {
        pub mod system {
            pub use crate::vsock;
        }
    }
}
