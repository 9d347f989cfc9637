//! Objects whose fields are taken out one by one, so that nothing is overlooked: what is left at the end is said.

use serde_json::{Map, Value};

use super::Problem;

/// What of an object is still to be understood.
pub struct Fields {
    at: String,
    left: Map<String, Value>,
}

impl Fields {
    /// Of a value that is an object; of another there is nothing to take.
    pub fn of(at: impl Into<String>, value: &Value) -> Self {
        Self { at: at.into(), left: value.as_object().cloned().unwrap_or_default() }
    }

    /// Where a field is.
    pub fn place(&self, name: &str) -> String {
        if self.at.is_empty() { name.to_string() } else { format!("{}.{name}", self.at) }
    }

    /// Takes a field, if it is there and not null.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.left.remove(name).filter(|value| !value.is_null())
    }

    /// Takes a text.
    pub fn text(&mut self, name: &str) -> Option<String> {
        match self.take(name)? {
            Value::String(text) => Some(text),
            other => self.give_back(name, other),
        }
    }

    /// Takes a number.
    pub fn number(&mut self, name: &str) -> Option<u64> {
        let value = self.take(name)?;
        match value.as_u64() {
            Some(number) => Some(number),
            None => self.give_back(name, value),
        }
    }

    /// Takes a list; each with its place.
    pub fn list(&mut self, name: &str) -> Vec<(String, Value)> {
        let at = self.place(name);
        match self.take(name) {
            None => Vec::new(),
            Some(Value::Array(all)) => {
                all.into_iter().enumerate().map(|(number, value)| (format!("{at}[{number}]"), value)).collect()
            }
            Some(other) => {
                self.left.insert(name.to_string(), other);
                Vec::new()
            }
        }
    }

    /// Takes a list of texts.
    pub fn texts(&mut self, name: &str) -> Vec<String> {
        let all = self.list(name);
        let texts = all.iter().filter_map(|(_, value)| value.as_str().map(str::to_string)).collect::<Vec<_>>();
        if texts.len() < all.len() {
            self.left.insert(name.to_string(), Value::Array(all.into_iter().map(|(_, value)| value).collect()));
            return Vec::new();
        }
        texts
    }

    /// Takes an object.
    pub fn within(&mut self, name: &str) -> Option<Fields> {
        let at = self.place(name);
        match self.take(name)? {
            Value::Object(left) => Some(Self { at, left }),
            other => self.give_back(name, other),
        }
    }

    /// The names of what is there.
    pub fn names(&self) -> Vec<String> {
        self.left.keys().cloned().collect()
    }

    /// What was not understood.
    pub fn rest(self) -> Vec<Problem> {
        let Self { at, left } = self;
        let place = |name: &String| if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
        left.keys().map(|name| (place(name), "there is nothing that says this".to_string())).collect()
    }

    fn give_back<T>(&mut self, name: &str, value: Value) -> Option<T> {
        self.left.insert(name.to_string(), value);
        None
    }
}
