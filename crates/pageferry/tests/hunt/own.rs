//! What the hunter changes itself, beside the writers' numbers and on the same pages.

use pageferry::{After, Error, File, Map, PinMode};

use crate::board::Board;
use crate::common::Dice;
use crate::layout::{FAR, OWN, PAGE};

/// The hunter's own words. Nobody else changes them, so they are known exactly.
pub struct Own {
    values: [u64; OWN.len()],
    map: Option<Map>,
    pub releases: u64,
    pub kept: u64,
    pub refused: u64,
    pub stores: u64,
    pub writes: u64,
}

impl Own {
    pub fn new() -> Own {
        Own {
            values: [0; OWN.len()],
            map: None,
            releases: 0,
            kept: 0,
            refused: 0,
            stores: 0,
            writes: 0,
        }
    }

    /// One change, by the device, a mapping or a call.
    pub fn change(&mut self, file: &File, board: &Board, dice: &mut Dice) {
        let own = dice.roll(OWN.len() as u64) as usize;
        let value = self.values[own] + 1;
        let at = OWN[own];
        match dice.roll(5) {
            0 | 1 => self.by_device(file, at, value, dice),
            2 => {
                file.write_at(&value.to_le_bytes(), at).unwrap();
                self.writes += 1;
            }
            _ => self.by_mapping(file, at, value, dice),
        }
        self.values[own] = value;
        board.release(own, value);
    }

    fn by_device(&mut self, file: &File, at: u64, value: u64, dice: &mut Dice) {
        let pin = file.pin(at..at + 8, PinMode::Write).unwrap();
        let view = pin.view().unwrap();
        let mut word = [0; 8];
        view.read(at, &mut word).unwrap();
        assert_eq!(u64::from_le_bytes(word), value - 1, "a write pin saw another's word at {at}");
        view.write(at, &value.to_le_bytes()).unwrap();
        drop(view);
        if dice.roll(2) == 0 {
            pin.release().unwrap();
            self.releases += 1;
            return;
        }
        match pin.release_with(After::KeepAway) {
            Ok(_) => self.kept += 1,
            Err(Error::Unguarded { .. }) => self.refused += 1,
            Err(error) => panic!("{error}"),
        }
    }

    fn by_mapping(&mut self, file: &File, at: u64, value: u64, dice: &mut Dice) {
        let map = self.map.take().unwrap_or_else(|| file.map(0..(FAR + 1) * PAGE, true).unwrap());
        assert_eq!(map.load_u64(at as usize).unwrap(), value - 1, "a mapping's word at {at}");
        map.store_u64(at as usize, value).unwrap();
        self.stores += 1;
        match dice.roll(20) {
            0 => map.unmap().unwrap(),
            _ => self.map = Some(map),
        }
    }

    /// What a pin saw of a word of ours.
    pub fn check(&self, own: usize, seen: u64) {
        assert_eq!(seen, self.values[own], "a pin saw another word of ours at {}", OWN[own]);
    }
}
