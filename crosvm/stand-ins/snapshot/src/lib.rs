// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A stand-in for crosvm's `snapshot`: a value of any type, on its way into or
//! out of a snapshot. Host tests only; never built by Soong.

use ciborium::Value;
use serde::{de::DeserializeOwned, Deserialize, Serialize};

/// A serialized value whose type the holder does not know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AnySnapshot(Value);

impl AnySnapshot {
    /// Serializes `x`.
    pub fn to_any(x: impl Serialize) -> anyhow::Result<Self> {
        Ok(Self(Value::serialized(&x)?))
    }

    /// Deserializes; fails when `x` does not hold a `T`.
    pub fn from_any<T: DeserializeOwned>(x: Self) -> anyhow::Result<T> {
        Ok(x.0.deserialized()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Inner {
        cid: u64,
        bases: Vec<u16>,
    }

    #[test]
    fn nests_and_refuses() {
        let inner = || Inner {
            cid: u64::MAX,
            bases: vec![0, 65535],
        };
        let any = AnySnapshot::to_any(inner()).unwrap();
        let nested = AnySnapshot::to_any(("device", any.clone())).unwrap();
        let (name, out): (String, AnySnapshot) = AnySnapshot::from_any(nested).unwrap();
        assert_eq!(name, "device");
        assert_eq!(out, any);
        assert_eq!(AnySnapshot::from_any::<Inner>(out).unwrap(), inner());
        assert!(AnySnapshot::from_any::<u32>(any).is_err());
    }
}
