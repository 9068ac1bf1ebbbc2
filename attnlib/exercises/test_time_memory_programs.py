"""The programs of chapter 7.2, memories that learn at test time."""
