//! How records are shown: CSV, plain text tables, and one HTML page.
//!
//! Renderers only read records and their judgements. The rows that tables and the page share are in
//! `figures`.

mod csv;
mod figures;
mod html;
mod table;

pub use csv::cycles_csv;
pub use html::{proof_page, report_page};
pub use table::{scale_table, tables_of};
