"""The browser demo: a page that runs an exported file on the device of whoever opens it."""
