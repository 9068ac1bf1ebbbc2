"""Checked exercises of chapter 8.1 that ask for a program, and its bug hunt."""
