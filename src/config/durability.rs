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

/// Whose acknowledgement a COMMIT waits for, where there are two replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WaitFor {
    /// The first one's.
    First,
    /// Both: the loss of either provider takes nothing that was acknowledged.
    #[default]
    Both,
    /// That of the one which has it sooner: an outage of one keeps nobody waiting.
    Any,
}

impl WaitFor {
    /// All three.
    pub const ALL: [Self; 3] = [Self::First, Self::Both, Self::Any];

    /// `None` unless the text is one of the three words.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|wait_for| wait_for.as_str() == text)
    }

    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Both => "both",
            Self::Any => "any",
        }
    }
}

impl fmt::Display for WaitFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
