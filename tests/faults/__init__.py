"""What tests break things with: answers of bad servers (`spoilers`), a disk that fails (`broken_disk`)."""
