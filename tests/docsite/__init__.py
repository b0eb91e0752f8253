"""The docs as a site: `make docs` puts the pages of docs/ together with those that are made of the code."""
