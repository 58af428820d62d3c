//! The report as one self-contained HTML page: no network, readable in print, in a light and a
//! dark theme, with the keyboard, and without its script.
//!
//! Every string of a report is hostile until [`text::Text`] has escaped it. The page's content
//! security policy forbids all loading, so that markup in a string that was missed fetches nothing.

mod charts;
mod details;
mod matrix;
mod page;
mod plot;
mod proof;
mod resources;
mod rules;
mod text;
mod verdict;

pub use page::report_page;
pub use proof::proof_page;
