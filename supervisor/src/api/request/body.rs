//! Reads JSON bodies as the servers of the Fly Machines API do, which are written in Go. A field that
//! is null counts as absent; clients rely on it. JSON has one kind of number, so `5.0` is an integer,
//! too. Unlike with serde, a list is not accepted for an object.

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeOwned, Deserializer, Error, IntoDeserializer, Unexpected, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Number, Value};

/// Reads a body.
pub(crate) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    T::deserialize(Reader(serde_json::from_slice(bytes)?))
}

/// 2^53. Below it, a floating point number without a fraction is exactly that integer.
const EXACT: f64 = 9_007_199_254_740_992.0;

struct Reader(Value);

impl<'de> IntoDeserializer<'de, serde_json::Error> for Reader {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Reader {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::Object(fields) => {
                let fields = fields.into_iter().map(|(name, value)| (name, Self(value)));
                visitor.visit_map(MapDeserializer::new(fields))
            }
            Value::Array(items) => {
                visitor.visit_seq(SeqDeserializer::new(items.into_iter().map(Self)))
            }
            Value::Number(number) => integral(number).deserialize_any(visitor),
            other => other.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        if self.0.is_null() {
            visitor.visit_none()
        } else {
            visitor.visit_some(self)
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::Object(fields) => {
                let given = fields.into_iter().filter(|(_, value)| !value.is_null());
                let given = given.map(|(name, value)| (name, Self(value)));
                visitor.visit_map(MapDeserializer::new(given))
            }
            Value::Array(_) => Err(Error::invalid_type(Unexpected::Seq, &visitor)),
            other => other.deserialize_any(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct newtype_struct seq tuple tuple_struct map identifier ignored_any
    }
}

fn integral(number: Number) -> Number {
    let float = number.as_f64().filter(|_| number.is_f64());
    let integer = float.filter(|float| float.fract() == 0.0 && float.abs() < EXACT);
    integer
        .map_or(Some(number.clone()), |float| {
            format!("{float:.0}").parse().ok()
        })
        .unwrap_or(number)
}

#[cfg(test)]
mod tests {
    use machine_api::{CreateMachine, StopRequest};

    use super::*;

    fn created(body: &str) -> Option<CreateMachine> {
        read(body.as_bytes()).ok()
    }

    #[test]
    fn null_counts_as_absent() {
        let request =
            created(r#"{"name": null, "config": {"env": null, "guest": {"cpus": null}}}"#);
        let request = request.unwrap();
        assert_eq!(request.name, None);
        assert_eq!(request.config.guest.unwrap().cpus, 1);
        assert!(created(r#"{"config": null}"#).is_none());
        assert!(created(r#"{"config": {"metadata": {"a": null}}}"#).is_none());
    }

    #[test]
    fn numbers_without_a_fraction_are_integers() {
        let guest = |cpus| created(&format!(r#"{{"config": {{"guest": {{"cpus": {cpus}}}}}}}"#));
        assert_eq!(guest("2.0").unwrap().config.guest.unwrap().cpus, 2);
        assert!(guest("2.5").is_none());
        assert!(guest("-1.0").is_none());
        assert!(guest("1e300").is_none());
    }

    #[test]
    fn a_list_is_no_object() {
        assert!(read::<StopRequest>(b"[]").is_err());
        assert!(created(r#"{"config": {"restart": []}}"#).is_none());
        assert!(read::<StopRequest>(br#"{"timeout": 5}"#).is_ok());
    }
}
