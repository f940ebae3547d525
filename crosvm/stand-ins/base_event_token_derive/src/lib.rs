// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A stand-in for crosvm's `base_event_token_derive`: `#[derive(EventToken)]`
//! for enums. Host tests only; never built by Soong.
//!
//! A token is one `u64`: the variant's number in the low bits, the payload of
//! a one-field variant above them. The generated code names `EventToken`
//! without a path, as the real macro does, so the trait must be in scope.

use proc_macro::TokenStream;
use proc_macro2::TokenStream as Code;
use quote::{quote, ToTokens};
use syn::{parse_macro_input, Data, DeriveInput, Error, Field, Fields, Index, Member, Variant};

/// Implements `EventToken` for an enum whose variants hold at most one integer.
#[proc_macro_derive(EventToken)]
pub fn event_token(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    implementation(&input)
        .unwrap_or_else(Error::into_compile_error)
        .into()
}

fn implementation(input: &DeriveInput) -> syn::Result<Code> {
    let Data::Enum(data) = &input.data else {
        return Err(Error::new_spanned(input, "an event token is an enum"));
    };
    let name = &input.ident;
    let bits = data.variants.len().next_power_of_two().trailing_zeros();
    let mask = (1u64 << bits) - 1;
    let mut pack = Vec::new();
    let mut unpack = Vec::new();
    for (number, variant) in (0u64..).zip(&data.variants) {
        let case = &variant.ident;
        match payload(variant)? {
            None => {
                pack.push(quote!(#name::#case => #number));
                unpack.push(quote!(#number => #name::#case));
            }
            Some((member, field)) => {
                let ty = &field.ty;
                pack.push(
                    quote!(#name::#case { #member: data } => #number | ((data as u64) << #bits)),
                );
                unpack.push(quote!(#number => #name::#case { #member: (data >> #bits) as #ty }));
            }
        }
    }
    Ok(quote! {
        impl EventToken for #name {
            fn as_raw_token(&self) -> u64 {
                match *self {
                    #(#pack,)*
                }
            }

            fn from_raw_token(data: u64) -> Self {
                match data & #mask {
                    #(#unpack,)*
                    _ => unreachable!("not a token of this enum"),
                }
            }
        }
    })
}

/// The one field of `variant`, or nothing for a unit variant.
fn payload(variant: &Variant) -> syn::Result<Option<(Code, &Field)>> {
    let fields = match &variant.fields {
        Fields::Unit => return Ok(None),
        Fields::Named(fields) => &fields.named,
        Fields::Unnamed(fields) => &fields.unnamed,
    };
    let mut fields = fields.iter();
    let (Some(field), None) = (fields.next(), fields.next()) else {
        return Err(Error::new_spanned(
            variant,
            "a token holds at most one field",
        ));
    };
    let member = match &field.ident {
        Some(name) => Member::Named(name.clone()),
        None => Member::Unnamed(Index::from(0)),
    };
    Ok(Some((member.into_token_stream(), field)))
}

#[cfg(test)]
mod tests {
    use syn::parse_quote;

    use super::*;

    #[test]
    fn only_enums_with_small_variants() {
        let two: DeriveInput = parse_quote!(
            enum Token {
                Pair(u8, u8),
            }
        );
        assert!(implementation(&two).is_err());
        let structure: DeriveInput = parse_quote!(
            struct Token;
        );
        assert!(implementation(&structure).is_err());
    }
}
