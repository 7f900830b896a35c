"""What README quotes, measured: one program per table."""
