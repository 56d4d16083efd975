"""``make release``: what is handed out, built, checked and tried; not part of the library."""
