//! Lists in pages: `?limit=` items, and a cursor where the next ones begin.
//!
//! A cursor is the key of the last item that was given, so that what is added or removed between two pages neither repeats nor hides
//! others. At most [`LIMIT_MAX`] items at a time.

use serde::{Deserialize, Deserializer, Serialize};

use super::super::error::ApiError;
use super::ask::wrong;

/// Most items of a page.
const LIMIT_MAX: usize = 200;
/// Items of a page that was not asked for otherwise.
const LIMIT: usize = 50;
/// Longest cursor: a name, a version and a hash.
const CURSOR_BYTES_MAX: usize = 256;

/// How many items a page has, 1 to [`LIMIT_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limit(usize);

impl Limit {
    pub(super) fn get(self) -> usize {
        self.0
    }
}

impl Default for Limit {
    fn default() -> Limit {
        Limit(LIMIT)
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Limit, D::Error> {
        let asked = String::deserialize(deserializer)?;
        let limit = asked.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit));
        limit.map(Limit).ok_or_else(|| serde::de::Error::custom(format!("`limit` is a number from 1 to {LIMIT_MAX}")))
    }
}

/// The query of a list that has no other parameters.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct PageQuery {
    pub(super) limit: Limit,
    pub(super) cursor: Option<String>,
}

/// A part of a list.
#[derive(Debug, Serialize)]
pub(super) struct Page<T> {
    pub(super) items: Vec<T>,
    /// The cursor of the next page; null on the last.
    pub(super) next: Option<String>,
}

impl<T> Page<T> {
    /// The page behind `cursor` of all `items`, ordered by a key that is unique.
    pub(super) fn of(
        mut items: Vec<T>,
        key: impl Fn(&T) -> String,
        limit: Limit,
        cursor: Option<&str>,
    ) -> Result<Page<T>, ApiError> {
        check(cursor)?;
        items.retain(|item| cursor.is_none_or(|cursor| key(item).as_str() > cursor));
        items.sort_by_cached_key(&key);
        Ok(Page::cut(items, limit, key))
    }

    /// The page that `items` begin with; there is a next one if they are more than `limit`.
    pub(super) fn cut(mut items: Vec<T>, limit: Limit, key: impl Fn(&T) -> String) -> Page<T> {
        let more = items.len() > limit.get();
        items.truncate(limit.get());
        let next = items.last().filter(|_| more).map(key);
        Page { items, next }
    }
}

/// A cursor that is a number.
pub(super) fn number(cursor: Option<&str>) -> Result<Option<u64>, ApiError> {
    cursor.map(|cursor| cursor.parse().map_err(|_| bad_cursor())).transpose()
}

fn check(cursor: Option<&str>) -> Result<(), ApiError> {
    if cursor.is_some_and(|cursor| cursor.len() > CURSOR_BYTES_MAX) { Err(bad_cursor()) } else { Ok(()) }
}

fn bad_cursor() -> ApiError {
    wrong(
        "bad-cursor",
        "the cursor is none that a page gave".to_owned(),
        "give the `next` of the page before, or none to begin again",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    // Pages give every item once, in order, and the last one says so; an item that goes between two pages hides no other.
    #[test]
    fn pages_follow_each_other() {
        let all: Vec<String> = (0..7).map(|n| format!("asset-{n}")).collect();
        let page = |items: &[String], cursor: Option<&str>| {
            Page::of(items.to_vec(), String::clone, Limit(3), cursor).ok().map(|page| (page.items, page.next))
        };
        let (first, next) = page(&all, None).unwrap();
        assert_eq!((first, next.as_deref()), (all[..3].to_vec(), Some("asset-2")));
        let without: Vec<String> = all.iter().filter(|name| *name != "asset-2").cloned().collect();
        let (second, next) = page(&without, next.as_deref()).unwrap();
        assert_eq!((second, next.as_deref()), (all[3..6].to_vec(), Some("asset-5")));
        let (last, next) = page(&all, next.as_deref()).unwrap();
        assert_eq!((last, next), (all[6..].to_vec(), None));
        assert!(page(&all, Some(&"x".repeat(CURSOR_BYTES_MAX + 1))).is_none());
    }

    // A page that ends exactly with the last item is the last page.
    #[test]
    fn a_full_last_page_has_no_next() {
        let page = Page::cut(vec![1, 2, 3], Limit(3), ToString::to_string);
        assert_eq!((page.items, page.next), (vec![1, 2, 3], None));
    }

    // A limit is read from 1 to the most, and nothing beyond.
    #[test]
    fn limits_are_bounded() {
        let read = |text: &str| serde_json::from_value::<Limit>(text.into()).map(Limit::get).ok();
        assert_eq!((read("1"), read("200")), (Some(1), Some(200)));
        for bad in ["0", "201", "-1", "", "many", "99999999999999999999999"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
