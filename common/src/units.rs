//! Sizes and spans of time as people write them in a configuration file.

use std::fmt;
use std::time::Duration;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes: `"256MiB"` (1024 based), `"1GB"` (1000 based), `"512"` or `512`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Size(u64);

impl Size {
    /// So many bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// So many KiB.
    pub const fn kib(n: u64) -> Self {
        Self(n << 10)
    }

    /// So many MiB.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// So many GiB.
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }

    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl fmt::Debug for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl std::str::FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let negative = text.trim_start().starts_with('-');
        match text.parse::<bytesize::ByteSize>() {
            Ok(size) if !negative => Ok(Self(size.as_u64())),
            _ => Err(format!("{text:?} is not a size: write a number with KiB, MiB, GiB, KB, MB or GB behind it")),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = Size;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"256MiB\", or a number of bytes")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Size, E> {
                Ok(Size(bytes))
            }
            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
                u64::try_from(bytes).map(Size).map_err(|_| E::custom("a size is not negative"))
            }
        }
        deserializer.deserialize_any(V)
    }
}

/// The longest span that is taken: added to any clock it is still a time.
const LONGEST_SPAN: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// A span of time, at most 10 years (of 365 days): `"15s"`, `"5m"`, `"1h 30m"`, `"250ms"`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span(Duration);

impl Span {
    /// This long.
    pub const fn new(duration: Duration) -> Self {
        Self(duration)
    }

    /// So many milliseconds.
    pub const fn millis(n: u64) -> Self {
        Self(Duration::from_millis(n))
    }

    /// So many seconds.
    pub const fn secs(n: u64) -> Self {
        Self(Duration::from_secs(n))
    }

    /// As a duration.
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl From<Duration> for Span {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl std::str::FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match humantime::parse_duration(text) {
            Ok(span) if span > LONGEST_SPAN => Err(format!("{text:?} is too long: at most 10 years (3650d)")),
            Ok(span) => Ok(Self(span)),
            Err(humantime::DurationError::NumberOverflow) => {
                Err(format!("{text:?} is too long: at most 10 years (3650d)"))
            }
            Err(_) => Err(format!("{text:?} is not a span of time: write a number with ms, s, m, h or d behind it")),
        }
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = Span;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a span of time such as \"15s\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(V)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [("256MiB", 256 << 20), ("1GB", 1_000_000_000), ("512", 512), ("64 KiB", 65_536)] {
            assert_eq!(text.parse(), Ok(Size::new(bytes)), "{text}");
        }
        for bad in ["", "MiB", "1 parsec", "-5MiB", "1..2MB"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
        for bytes in [0, 1, 1023, 1024, 1 << 20, 3 << 30, 10_000_000_001, u64::MAX >> 12] {
            assert_eq!(Size::new(bytes).to_string().parse(), Ok(Size::new(bytes)));
        }
        assert_eq!(Size::mib(128).to_string(), "128MiB");
    }

    #[test]
    fn spans() {
        assert_eq!("15s".parse(), Ok(Span::secs(15)));
        assert_eq!("1h 30m".parse(), Ok(Span::secs(5400)));
        for bad in ["", "15", "five minutes", "-1s"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
        assert_eq!("3650d".parse(), Ok(Span::new(LONGEST_SPAN)));
        for long in ["3651d", "11y", "18446744073709551615s", "99999999999999999999s", "9000000000000y"] {
            let error = long.parse::<Span>().unwrap_err();
            assert!(error.contains("at most 10 years"), "{error}");
        }
        let _later = std::time::Instant::now() + LONGEST_SPAN;
        for ms in [0, 250, 60_000, 90_061_001] {
            assert_eq!(Span::millis(ms).to_string().parse(), Ok(Span::millis(ms)));
        }
    }
}
