//! Inputs that are sequences of steps, in the encoding of postcard, so that seeds are written as steps.
//!
//! A mutated input decodes nevertheless: a byte that begins no step is skipped.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Most steps that are taken of an input, so that none lasts long.
const MOST: usize = 200;

/// The steps of an input.
pub(crate) fn decode<S: DeserializeOwned>(mut input: &[u8]) -> Vec<S> {
    let mut steps = Vec::new();
    while !input.is_empty() && steps.len() < MOST {
        match postcard::take_from_bytes(input) {
            Ok((step, rest)) => {
                // A step without content would never end the input.
                input = if rest.len() < input.len() {
                    rest
                } else {
                    &rest[1..]
                };
                steps.push(step);
            }
            Err(_) => input = &input[1..],
        }
    }
    steps
}

/// The input that decodes to these steps.
pub(crate) fn encode<S: Serialize>(steps: &[S]) -> Vec<u8> {
    let encoded = steps.iter().map(postcard::to_stdvec);
    encoded
        .map(|step| step.expect("steps are plain data"))
        .collect::<Vec<_>>()
        .concat()
}
