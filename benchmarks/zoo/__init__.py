"""Models by other people, repaired: the catalogue, what is measured of each, and the table in docs/audit.md."""
