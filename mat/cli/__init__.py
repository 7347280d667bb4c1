"""How a command behaves: console, progress, errors and exit statuses, signals, files, downloads, devices."""
