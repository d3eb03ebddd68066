//! Damaged, foreign and newer databases.
