"""The explorer: a page that shows what a capsule network sees, and what builds it."""
