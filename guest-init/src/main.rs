//! The program `guest-init`; see the library.

fn main() {
    guest_init::run();
}
