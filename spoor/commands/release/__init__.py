"""The commands of `spoor release`: list, show, promote, retire, compare, drift, and tables build and report."""
