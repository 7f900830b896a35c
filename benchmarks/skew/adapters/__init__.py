"""Other tools, each used as its documentation shows: small, so that you can see that it is fair."""
