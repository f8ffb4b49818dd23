"""What the bucket holds, as a tree in SQLite: written by the mover (`tree`, `listing`), read by servers (`view`)."""
