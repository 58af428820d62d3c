//! Random changes of inputs, for tests that run without coverage.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};

/// Longest input.
const MOST_BYTES: usize = 16 << 10;
/// Numbers at which code often decides.
const SPECIAL: [u8; 8] = [0, 1, 2, 0x7f, 0x80, 0xfe, 0xff, b'\n'];

/// One of the inputs with a few random changes, or random bytes.
pub fn mutated(inputs: &[Vec<u8>], random: &mut StdRng) -> Vec<u8> {
    let mut input = match inputs.choose(random) {
        Some(input) if random.random_ratio(15, 16) => input.clone(),
        _ => some_bytes(random, 400),
    };
    for _ in 0..random.random_range(1..8) {
        change(&mut input, inputs, random);
    }
    input.truncate(MOST_BYTES);
    input
}

fn change(input: &mut Vec<u8>, inputs: &[Vec<u8>], random: &mut StdRng) {
    let at = random.random_range(0..=input.len());
    let end = (at + random.random_range(1..40)).min(input.len());
    match random.random_range(0..7) {
        0 => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << random.random_range(0..8);
            }
        }
        1 => {
            if let Some(byte) = input.get_mut(at) {
                *byte = *SPECIAL.choose(random).unwrap_or(&0);
            }
        }
        2 => drop(input.splice(at..at, some_bytes(random, 16))),
        3 => drop(input.drain(at..end)),
        4 => {
            let part = input[at..end].to_vec();
            let to = random.random_range(0..=input.len());
            drop(input.splice(to..to, part));
        }
        5 => {
            let Some(other) = inputs.choose(random) else {
                return;
            };
            let from = random.random_range(0..=other.len());
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        _ => input[at..end].fill(*SPECIAL.choose(random).unwrap_or(&0)),
    }
}

fn some_bytes(random: &mut StdRng, most: usize) -> Vec<u8> {
    let mut bytes = vec![0; random.random_range(0..most)];
    random.fill_bytes(&mut bytes);
    bytes
}
