"""The rounds of a federation: who is asked, how replies are checked, combined and recorded."""
