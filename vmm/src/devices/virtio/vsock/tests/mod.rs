//! Tests of the whole device, with host programs on real Unix sockets and a fake guest on the
//! queues; and of the parts between the two, where time and schedule matter, as a model.

mod bench;
mod connections;
mod hostile;
mod model;
mod restore;
