"""Checked exercises of chapter 6.1 that ask for a program, and its bug hunt."""
