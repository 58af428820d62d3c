//! The effects of each transition, as methods of the driver.
//!
//! Each stores the transition's begin, answers the request, acts on VMM and guest, and ends with the
//! state that was reached. A method that returns a request was interrupted by it.

mod adopt;
mod destroy;
mod end_guest;
mod restart;
mod start;
mod start_end;
mod stop;
mod suspend;
mod take_over;
mod update;
mod vmm_end;
