//! The report as one self-contained HTML page: no network, readable in print, in a light and a
//! dark theme, with the keyboard, and without its script.
//!
//! Every string of a report is hostile until it has gone through [`text::Text`]; the page forbids
//! itself all loading, so that what slipped through could fetch nothing.

mod charts;
mod details;
mod matrix;
mod page;
mod plot;
mod text;
mod verdict;

pub use page::report_page;
