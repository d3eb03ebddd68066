//! The table: what a server must do, by the sections of the standards.

mod acks;
mod closing;
mod connack;
mod connect;
mod delivery;
mod format;
mod properties;
mod publish;
mod sessions;
mod subscribe;
mod topics;
mod will;

use crate::row::Row;

/// All rows.
pub fn all() -> impl Iterator<Item = &'static Row> {
    let chapters: [&[Row]; 12] = [
        format::ROWS,
        connect::ROWS,
        will::ROWS,
        connack::ROWS,
        publish::ROWS,
        properties::ROWS,
        acks::ROWS,
        subscribe::ROWS,
        closing::ROWS,
        sessions::ROWS,
        delivery::ROWS,
        topics::ROWS,
    ];
    chapters.into_iter().flatten()
}
