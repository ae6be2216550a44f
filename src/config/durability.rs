//! What a COMMIT waits for.

use std::fmt;

/// What a COMMIT waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Nothing: the bucket has it a moment later.
    #[default]
    Local,
    /// The bucket, while it lags behind by more than `max_lag`.
    Bounded,
    /// The bucket.
    Remote,
}

impl Durability {
    /// All three, the weakest first.
    pub const ALL: [Self; 3] = [Self::Local, Self::Bounded, Self::Remote];

    /// `None` unless the text is one of the three words.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|durability| durability.as_str() == text)
    }

    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Bounded => "bounded",
            Self::Remote => "remote",
        }
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
