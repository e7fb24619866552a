"""The Serve replica around one gang: who gets in, who waits, what is answered."""
