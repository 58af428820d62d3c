//! Plain data with one value changed: what a damaged or hostile saved state looks like that still decodes.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One change.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Change {
    /// Sets the number (or truth value) at that place among all of them.
    Number { place: u16, value: u64 },
    /// Repeats an element of the list at that place among all lists.
    Repeat { place: u16, times: u8 },
    /// Empties the list or text at that place among all of them.
    Empty { place: u16 },
}

/// `data` after that change; none if it cannot have it.
pub(crate) fn changed<T: Serialize + DeserializeOwned>(data: &T, change: &Change) -> Option<T> {
    let mut value = serde_json::to_value(data).ok()?;
    match *change {
        Change::Number { place, value: new } => {
            let found = nth(&mut value, place, &|value| {
                value.is_number() || value.is_boolean()
            })?;
            *found = match found {
                Value::Bool(_) => Value::Bool(new % 2 == 1),
                _ => new.into(),
            };
        }
        Change::Repeat { place, times } => {
            let list = nth(&mut value, place, &Value::is_array)?.as_array_mut()?;
            let element = list.last()?.clone();
            list.extend(std::iter::repeat_n(element, times.into()));
        }
        Change::Empty { place } => {
            let found = nth(&mut value, place, &|value| {
                value.is_array() || value.is_string()
            })?;
            *found = match found {
                Value::Array(_) => Value::Array(Vec::new()),
                _ => Value::String(String::new()),
            };
        }
    }
    serde_json::from_value(value).ok()
}

/// The value at that place among those that are `wanted`.
fn nth<'v>(
    value: &'v mut Value,
    place: u16,
    wanted: &dyn Fn(&Value) -> bool,
) -> Option<&'v mut Value> {
    let count = count(value, wanted);
    let mut left = usize::from(place).checked_rem(count)?;
    find(value, &mut left, wanted)
}

fn count(value: &Value, wanted: &dyn Fn(&Value) -> bool) -> usize {
    let below = match value {
        Value::Array(items) => items.iter().map(|item| count(item, wanted)).sum(),
        Value::Object(fields) => fields.values().map(|field| count(field, wanted)).sum(),
        _ => 0,
    };
    below + usize::from(wanted(value))
}

fn find<'v>(
    value: &'v mut Value,
    left: &mut usize,
    wanted: &dyn Fn(&Value) -> bool,
) -> Option<&'v mut Value> {
    if wanted(value) {
        if *left == 0 {
            return Some(value);
        }
        *left -= 1;
    }
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| find(item, left, wanted)),
        Value::Object(fields) => fields
            .values_mut()
            .find_map(|field| find(field, left, wanted)),
        _ => None,
    }
}
