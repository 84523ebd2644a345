"""Figures for papers and pages, as PNG and SVG; matplotlib is imported when one is drawn, and not before."""
