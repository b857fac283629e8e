"""What a run says about itself: ``report.html`` and the table in the terminal."""
