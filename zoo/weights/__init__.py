"""Trained weights inside the package; `README.md` beside this file says what lies here."""
