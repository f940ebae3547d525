// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a test interferes: calls that fail, and things that happen right before one.

use crate::call::Call;

/// Which call is meant: the `skip`-th from now of that name, or of any.
#[derive(Clone, Copy, Debug)]
pub(crate) struct When {
    pub(crate) name: Option<&'static str>,
    pub(crate) skip: usize,
}

impl When {
    /// Counts `call` in; whether it is the one.
    pub(crate) fn is_now(&mut self, call: &Call) -> bool {
        if self.name.is_some_and(|name| name != call.name()) {
            return false;
        }
        match self.skip.checked_sub(1) {
            Some(left) => self.skip = left,
            None => return true,
        }
        false
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) when: When,
    pub(crate) errno: i32,
    pub(crate) for_ever: bool,
}

pub(crate) struct Hook {
    pub(crate) when: When,
    pub(crate) run: Box<dyn FnOnce() + Send>,
}
