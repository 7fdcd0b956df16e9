//! What went wrong, as people and as programs read it.

use std::io;

use pageferry::Error;
use serde_json::{Map, Value, json};

/// A command that failed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Failure {
    pub(crate) kind: String,
    pub(crate) errno: i32,
    pub(crate) message: String,
    /// What a shell command printed before it failed.
    pub(crate) output: Option<String>,
}

impl Failure {
    /// What was asked for is wrong.
    pub(crate) fn usage(message: impl Into<String>) -> Failure {
        Failure { kind: "usage".into(), errno: libc::EINVAL, message: message.into(), output: None }
    }

    /// The library's error, told in other words.
    pub(crate) fn told(error: &Error, message: String) -> Failure {
        Failure { kind: error.kind().into(), errno: error.errno(), message, output: None }
    }

    /// The error of a whole run; its kind is that of the cause that has one.
    pub(crate) fn of(error: &anyhow::Error) -> Failure {
        let message = message(error);
        let library = error.chain().find_map(|e| e.downcast_ref::<Error>().cloned());
        let system = || {
            let cause = error.chain().find_map(|e| e.downcast_ref::<io::Error>())?;
            let errno = cause.raw_os_error()?;
            Some(Error::Os { what: String::new(), errno })
        };
        match library.or_else(system) {
            Some(error) => Failure::told(&error, message),
            None => Failure::usage(message),
        }
    }

    /// The fields that say so to a program.
    pub(crate) fn fields(&self) -> Map<String, Value> {
        let error = json!({ "kind": self.kind, "errno": self.errno, "message": self.message });
        let mut fields = Map::new();
        fields.insert("ok".into(), false.into());
        fields.insert("error".into(), error);
        if let Some(output) = &self.output {
            fields.insert("output".into(), output.as_str().into());
        }
        fields
    }
}

/// The error and its causes in one line; a cause that its effect already tells is left out.
pub(crate) fn message(error: &anyhow::Error) -> String {
    let mut told = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if told.is_empty() {
            told = cause;
        } else if !told.contains(&cause) {
            told = format!("{told}: {cause}");
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let cause = io::Error::from_raw_os_error(libc::ENOMEM);
        let error =
            anyhow::Error::from(cause).context("reserving: Cannot allocate memory (os error 12)");
        assert_eq!(message(&error), "reserving: Cannot allocate memory (os error 12)");
        let failure = Failure::of(&error.context("making the device"));
        assert_eq!(failure.errno, libc::ENOMEM);
        assert!(failure.message.starts_with("making the device: reserving"));
    }
}
