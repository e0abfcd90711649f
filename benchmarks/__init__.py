"""Measurements that back the claims of the README; README.md here says what each shows and what came out."""
